"""Numbers from values, worked by hand on ragged values; and the table that the values are kept in."""

import math
from pathlib import Path

import pytest

from expunge.benchmarks._numbers import (
    against,
    compare,
    leak,
    membership,
    option_probabilities,
    probabilities,
    truth_ratios,
    truth_scores,
)
from expunge.benchmarks._values import Column, Values
from expunge.errors import DataRefused

E = math.exp


def table(**columns: list[float]) -> Values:
    """Columns called set__measure, with a third part for another answer: forget__loss__wrong_1."""
    named = {
        Column(*(part.replace("_1", " 1").replace("_2", " 2") for part in name.split("__"))): v
        for name, v in columns.items()
    }
    return Values({column: dict(enumerate(values)) for column, values in named.items()})


def test_probability_is_that_of_a_token_by_its_mean_loss():
    assert probabilities([0.0, 2.0]) == [1.0, E(-2)]


def test_an_option_is_weighed_against_the_sum_of_the_others():
    # ragged: one record has two wrong answers, the other one
    found = option_probabilities([1.0, 3.0], [[2.0, 3.0], [1.0]])
    assert found == pytest.approx([E(-1) / (E(-1) + E(-2) + E(-3)), E(-3) / (E(-3) + E(-1))], rel=1e-8)


def test_whole_answers_are_weighed_though_their_probabilities_are_below_1e_10():
    # as sums over tokens: e^-60 against e^-61 is 0.73; with the 1e-10 of the released code it would be 0
    assert option_probabilities([60.0], [[61.0]], least=0.0) == pytest.approx([1 / (1 + E(-1))])
    assert option_probabilities([60.0], [[61.0]])[0] < 1e-12


def test_truth_ratios_average_the_wrong_answers_either_way():
    right, wrong = [3.0, 1.5], [[1.0, 2.0], [2.0, 2.0, 5.0]]
    assert truth_ratios(right, wrong, "geometric") == pytest.approx([E(3 - 1.5), E(1.5 - 3)], rel=1e-8)
    assert truth_ratios(right, wrong, "arithmetic") == pytest.approx(
        [(E(-1) + E(-2)) / 2 / E(-3), (2 * E(-2) + E(-5)) / 3 / E(-1.5)], rel=1e-8
    )
    assert truth_scores([0.5, 4.0], gone=True) == pytest.approx([0.5, 0.25])
    assert truth_scores([0.5, 4.0], gone=False) == [0.5, 0.0]


def test_membership_is_1_where_every_forgotten_answer_is_surer_than_every_unseen_one():
    values = table(forget__loss=[1.0, 2.0], holdout__loss=[3.0, 2.0, 5.0])
    assert membership(values, "loss").value == pytest.approx((3 + 2.5) / 6)  # a tie is half
    assert membership(table(forget__loss=[1.0], holdout__loss=[2.0]), "loss").value == 1


def test_privleak_without_a_reference_is_against_chance():
    values = table(forget__min_k=[1.0, 4.0], holdout__min_k=[2.0, 3.0])  # area 1/2
    reference = table(forget__min_k=[3.0, 2.5], holdout__min_k=[1.0, 2.7])  # area 1/4
    assert leak(values, None, "").value == 0
    found = leak(values, reference, "retain")
    assert found.value == pytest.approx(100 * (0.5 - 0.75) / 0.75)
    assert found.against == "retain"
    alone = leak(values, table(forget__loss=[1.0]), "log")
    assert (alone.value, alone.against) == (0, "")  # a log without Min-K is no reference of it
    told = table(forget__min_k=[0.0], holdout__min_k=[1.0])
    assert leak(values, told, "sure").value is None


def test_forget_quality_comes_with_its_side_and_with_what_it_cannot_show():
    found = {number.name: number for number in compare([0.1, 0.2, 0.3], [0.5, 0.6, 0.7, 0.8], "retain", "geometric")}
    assert found["forget quality"].value == pytest.approx(2 / math.comb(7, 3))  # apart: 2 / C(7, 3)
    assert found["KS distance"].value == 1
    assert found["KS side"].value == -1  # more is known than in the reference
    assert found["KS detectable"].value is None  # 2 / 35 is 0.057: three against four can show nothing
    assert all(number.against == "retain" for number in found.values())


def test_the_reference_attack_takes_the_references_loss_off_record_by_record():
    values = table(forget__loss=[1.0, 5.0], holdout__loss=[2.0, 6.0])
    reference = table(forget__loss=[3.0, 7.0], holdout__loss=[2.0, 6.0])
    [found] = against(values, reference, "retain")
    assert found.value == 1  # -2 and -2 against 0 and 0, where the losses alone say 3/4
    assert membership(values, "loss").value == 0.75
    assert against(values, table(forget__loss=[3.0], holdout__loss=[2.0, 6.0]), "other") == []


def test_values_are_kept_as_they_are(tmp_path: Path):
    values = table(forget__loss=[0.1, 1 / 3], forget__loss__wrong_1=[1.0, 2.0], forget__loss__wrong_2=[3.0])
    values.save(tmp_path / "values.parquet")
    assert Values.read(tmp_path / "values.parquet") == values
    assert values.wrong("forget", "loss") == [[1.0, 3.0], [2.0]]
    assert values.of("forget", "loss", first=1) == [0.1]


def test_ten_wrong_answers_stay_in_their_order():
    columns = {Column("forget", "loss", f"wrong {k}"): {0: float(k)} for k in (10, 9, 2, 1)}
    assert Values(columns).wrong("forget", "loss") == [[1.0, 2.0, 9.0, 10.0]]


def test_what_was_not_measured_is_refused_and_so_is_another_file(tmp_path: Path):
    with pytest.raises(DataRefused, match="hold no rouge of the answer of the set 'forget'"):
        table(forget__loss=[1.0]).of("forget", "rouge")
    (tmp_path / "values.parquet").write_text("no")
    with pytest.raises(DataRefused, match="not a table of values"):
        Values.read(tmp_path / "values.parquet")
