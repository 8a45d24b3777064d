"""What a set of a request holds: as it was declared, or as its name says by convention.

    gone     what the model must no longer know: its numbers are held to those of a model that never saw it
    kept     what it must still know: its numbers are held to those before
    never    what no model was trained on, like the holdout set: held to those before where these are not luck

By convention names that begin with `forget` or `paraphrase` are of what should be gone, those with `retain`,
`neighbour`, `general` and `neutral` of what is kept, and those with `holdout` of what was never seen.
"""

from __future__ import annotations

from typing import Literal

Meaning = Literal["gone", "kept", "never"]
MEANINGS: tuple[Meaning, ...] = ("gone", "kept", "never")
BY_NAME: dict[Meaning, tuple[str, ...]] = {
    "gone": ("forget", "paraphrase"),
    "kept": ("retain", "neighbour", "neighbor", "general", "neutral"),
    "never": ("holdout",),
}
"""What names begin with."""


class SetName(str):
    """The name of a set whose meaning was declared; else a text like others, which it equals and is written as."""

    meaning: Meaning

    def __new__(cls, name: str, meaning: Meaning) -> SetName:
        made = super().__new__(cls, name)
        made.meaning = meaning
        return made

    def __reduce__(self) -> tuple[type[SetName], tuple[str, Meaning]]:  # what copies of it are made with
        return SetName, (str(self), self.meaning)


def declaration_of(name: str) -> Meaning | None:
    """What was said of a set; None where nothing was."""
    return name.meaning if isinstance(name, SetName) else None


def meaning_of(name: str) -> Meaning | None:
    """What a set holds; None where it was not declared and its name says nothing: it is held to what is kept."""
    return declaration_of(name) or next(
        (meaning for meaning, begins in BY_NAME.items() if name.startswith(begins)), None
    )


def should_be_gone(name: str) -> bool:
    """Whether a set holds what should be forgotten."""
    return meaning_of(name) == "gone"


def is_unseen(name: str) -> bool:
    """Whether a set holds what no model was trained on."""
    return meaning_of(name) == "never"
