"""Records of one set that say nearly what records of another say."""

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
