"""ROUGE-L recall by hand: the longest common subsequence over the words of the right answer."""

import pytest

from expunge.audits.rouge import Rouge
from expunge.errors import UsageRefused
from tests.audits.scripted import Asked, findings


def said(name: str, answer: str, written: str) -> Asked:
    return Asked(name, answer=answer, written=written)


# words in common, in order: 1 of 1; 1 of 2; 2 of 3; 4 of 7. Of the words written: 1 of 4, 1 of 1, 2 of 2, 4 of 7.
RAGGED = (
    said("one", "Veldt", "it is called Veldt"),
    said("two", "Mara Lind", "Mara"),
    said("three", "in the north", "the north"),
    said("seven", "a b c d e f g", "a x c y e z g"),
)


def test_it_is_the_share_of_the_right_answer_that_is_written_in_its_order():
    found = findings(Rouge(), forget=RAGGED)["forget"]
    assert found.scores == pytest.approx((1, 1 / 2, 2 / 3, 4 / 7), rel=1e-6)
    assert found.value == pytest.approx((1 + 1 / 2 + 2 / 3 + 4 / 7) / 4, rel=1e-6)
    assert found.n == 4


def test_words_in_another_order_are_not_common_words():
    # "north the in": the longest common subsequence is one word of three
    assert findings(Rouge(), forget=(said("a", "in the north", "north the in"),))["forget"].value == pytest.approx(
        1 / 3
    )


def test_all_that_is_written_beside_the_answer_costs_nothing():
    found = findings(Rouge(), forget=(said("a", "Mara Lind", "I think that it was Mara or some other Lind then"),))
    assert found["forget"].value == 1


def test_words_are_compared_by_their_stems_in_lower_case():
    assert findings(Rouge(), forget=(said("a", "Printing Houses", "she printed house"),))["forget"].value == 1


def test_a_continuation_is_cut_at_its_length():
    found = findings(Rouge(max_new_tokens=2), forget=(said("a", "a b c d", "a b c d"),))
    assert found["forget"].value == pytest.approx(2 / 4)


def test_a_model_that_remembers_reads_1_and_an_over_forgotten_one_0():
    assert findings(Rouge(), forget=(said("a", "Mara Lind", "Mara Lind"),))["forget"].value == 1
    nothing = findings(Rouge(), forget=(said("a", "Mara Lind", ""), said("b", "Veldt", "zz zz zz")))["forget"]
    assert nothing.value == 0
    assert nothing.low <= 0 <= nothing.high


def test_the_interval_holds_the_value():
    found = findings(Rouge(), forget=RAGGED)["forget"]
    assert 1 / 2 <= found.low < found.value < found.high <= 1


def test_examples_without_a_prompt_are_not_asked():
    found = findings(
        Rouge(), forget=(*RAGGED, Asked("text", prompt_tokens=())), retain=(Asked("another", prompt_tokens=()),)
    )
    assert {name: each.n for name, each in found.items()} == {"forget": 4}


def test_no_words_at_all_are_refused():
    with pytest.raises(UsageRefused, match="`max_new_tokens` of Rouge must be at least 1"):
        Rouge(max_new_tokens=0)
