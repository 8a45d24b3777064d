"""Records that say what others say, and what became of the records of a set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Repeat:
    """Near-duplicates between two sets. Holds line numbers, never text."""

    one: str
    other: str
    equal: int
    """How many are equal but for punctuation, case and spaces."""
    near: int
    """How many others share most of their words."""
    lines: tuple[tuple[int, int], ...]
    """Line in the file of the one set, and of its nearest in that of the other."""

    def __str__(self) -> str:
        shown = ", ".join(f"{a} and {b}" for a, b in self.lines[:5]) + (", ..." if len(self.lines) > 5 else "")
        return (
            f"{self.equal + self.near} {self.one} records repeat records of the {self.other} set, {self.equal} of them "
            f"word for word and {self.near} nearly (lines {shown})"
        )


@dataclass(frozen=True)
class Intake:
    """What became of a set's records on the way to its examples."""

    records: int
    """How many the file holds."""
    repeated: int = 0
    """How many of its examples equal an earlier one."""
    left_out: int = 0
    """How many of these were left out."""
    apart: int = 0
    """How many records became several examples: long texts, and conversations with several answers."""
    parts: int = 0
    """How many examples these became."""
    blank: int = 0
    """How many records are empty texts, which were left out."""

    def lines(self, name: str) -> list[str]:
        """What a user should know of it, in sentences."""
        said = []
        if self.blank:
            said.append(f"{self.blank} records of the {name} set are empty texts and were left out")
        if self.apart:
            said.append(
                f"{self.apart} records of the {name} set became {self.parts} examples: long texts are cut, and each "
                f"answer of a conversation is an example"
            )
        if self.left_out:
            said.append(f"{self.left_out} examples of the {name} set repeat an earlier one and were left out")
        elif self.repeated:
            said.append(f"{self.repeated} examples of the {name} set repeat an earlier one, and each counts")
        return said
