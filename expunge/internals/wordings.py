"""How a model words the answers that it is asked for: a question, and the words of an answer in a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from expunge.core.question import Question
from expunge.internals.examples import Tokenized


@dataclass(frozen=True)
class Wordings(Question[list[Tokenized | None]]):
    """Each example as the model itself says it: its greedy text after the prompt, labelled from the first word of the
    right answer on; None where the text does not hold the answer word for word."""

    cached: ClassVar[bool] = False
    max_new_tokens: int
    """Tokens after which a text is cut."""
    start: str = ""
    """How the model's answer is made to begin, such as "The answer is"; empty: as it begins itself."""

    def split(self, reply: list[Tokenized | None]) -> list[list[Tokenized | None]]:
        return [[one] for one in reply]

    def join(self, parts: Sequence[list[Tokenized | None]]) -> list[Tokenized | None]:
        return [one for part in parts for one in part]


def find_words(text: str, answer: str) -> int | None:
    """Where the words of an answer stand in a text one after the other, case and punctuation aside: the place of the
    first letter; None where they do not."""
    words, wanted = _words(text), [word for word, _ in _words(answer)]
    for start in range(len(words) - len(wanted) + 1 if wanted else 0):
        if [word for word, _ in words[start : start + len(wanted)]] == wanted:
            return words[start][1]
    return None


def _words(text: str) -> list[tuple[str, int]]:
    """Each word in small letters, with the place of its first letter."""
    made: list[tuple[str, int]] = []
    start = None
    for place, letter in enumerate(f"{text} "):
        if letter.isalnum():
            start = place if start is None else start
        elif start is not None:
            made.append((text[start:place].casefold(), start))
            start = None
    return made
