"""Damaged adapters and other bases are refused in one line, or answer as the adapter that was saved."""

from collections import Counter

import pytest

from tests.fuzz_adapters import CHANGES, ESCAPED, MARKS, REFUSED, RIGHT, WRONG, by_peft, by_us, run
from tests.peft_habits.kinds import BOUNDED, LORA
from tests.peft_habits.table import PAGE


@pytest.fixture(scope="module")
def found() -> Counter[tuple[str, str]]:
    """120 random changes; `python -m tests.fuzz_adapters` makes 3,000."""
    return run({"ours": (BOUNDED, by_us)}, 120)["ours"]


def test_none_is_accepted_with_other_answers_and_none_ends_in_another_error(found):
    assert {outcome for _, outcome in found} == {REFUSED, RIGHT}
    assert sum(found.values()) == 120


def test_every_change_of_tensors_is_refused_and_some_bases_and_settings_are_not(found):
    assert found["tensors", REFUSED] == 30
    assert found["base", RIGHT]  # another precision
    assert found["settings", RIGHT]  # such that the update does not depend on


def test_the_same_changes_do_reach_what_is_loaded():
    """peft's own LoRA accepts some of them and answers otherwise, so the refusals are not of changes without effect."""
    lora = run({"theirs": (LORA, by_peft)}, 24)["theirs"]
    assert sum(number for (_, outcome), number in lora.items() if outcome == WRONG) > 5


def test_the_page_tells_of_3000_changes_and_of_none_that_was_accepted_with_other_answers():
    rows = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0].splitlines()
    ours = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if "`load_adapter`" in row]
    assert [row[1] for row in ours] == list(CHANGES)
    assert sum(int(row[2]) for row in ours) >= 3000
    assert all((int(row[5]), int(row[6])) == (0, 0) for row in ours), (WRONG, ESCAPED)
