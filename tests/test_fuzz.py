"""A few hundred damaged files and texts of each kind; `tests/fuzz.py` tries thousands, with other seeds."""

import random
from pathlib import Path

import pytest

from tests.fuzz import KINDS, Tally

MANY = {"models": 40, "data": 150, "reports": 40, "notation": 400, "rules": 200}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_damaged_at_random_is_read_or_refused_in_one_line(kind: str, tmp_path: Path):
    tally = KINDS[kind](tmp_path, MANY[kind], random.Random(f"ci {kind}"))
    assert tally.escapes == []
    assert tally.refused > MANY[kind] / 4
    assert tally.read > 0


def test_an_escape_is_told_as_one():
    tally = Tally()

    def fail() -> None:
        raise KeyError("zanzibarlighthouse77")

    tally.try_one("a file", fail)
    tally.try_one("another", lambda: None)
    assert (tally.read, tally.refused, len(tally.escapes)) == (1, 0, 1)
