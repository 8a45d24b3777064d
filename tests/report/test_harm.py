"""When what should stay counts as harmed: tolerances, intervals, and what is left open; numbers by hand."""

import math

import pytest

from tests.report.made_up import around, good, rule, said, share, verdict


@pytest.mark.parametrize(
    ("where", "audit", "before", "after", "tolerance"),
    [
        ("retain", "Loss", 0.5, 0.61, 0.1),
        ("world", "Loss", 6.0, 6.31, 0.3),
        ("neutral", "Loss", 3.0, 3.04, math.log(1.03)),
        ("world", "Rouge", 0.5, 0.44, 0.05),
        ("neutral", "Perplexity", 20.0, 20.8, 0.03 * math.exp(math.log(20) + (math.log(1.1) + math.log(0.9)) / 2)),
    ],
)
def test_each_measure_says_itself_how_much_worse_is_harm(where, audit, before, after, tolerance):
    made = rule(verdict({f"{where}.{audit}": {"before": around(before), "after": around(after)}}), f"{where}.{audit}")
    assert (made.result, made.tolerance) == ("no", pytest.approx(tolerance))
    half = before + (after - before) / 2
    made = rule(verdict({f"{where}.{audit}": {"before": around(before), "after": around(half)}}), f"{where}.{audit}")
    assert made.result == "yes"


def test_shares_may_fall_by_1_per_cent_of_the_retain_set_and_by_2_points_elsewhere():
    for where, audit, tolerance in (("retain", "Choice", 0.008), ("x", "Choice", 0.02), ("retain", "Accuracy", 0.008)):
        table = {f"{where}.{audit}": {"before": share(0.8, 2000), "after": share(0.8 - tolerance, 2000)}}
        assert rule(verdict(table), f"{where}.{audit}").result == "yes"
        table[f"{where}.{audit}"]["after"] = share(0.8 - tolerance - 0.002, 2000)
        assert rule(verdict(table), f"{where}.{audit}").result == "no"


def test_perplexity_does_not_judge_answers_to_questions():
    assert verdict({"world.Perplexity": {"before": around(2), "after": around(9)}}).rules == ()


def test_of_few_records_a_large_mean_is_harm_and_a_small_one_is_left_open():
    def made(after: list[float]) -> str:
        return rule(verdict({"neutral.Perplexity": {"before": [20.0] * 6, "after": after}}), "neutral").result

    # one text in six of 20 -> 40: the mean grows by 2^(1/6) = 12 %, beyond three tolerances of 3 %
    assert (
        rule(
            verdict({"neutral.Perplexity": {"before": [20.0] * 6, "after": [20.0] * 5 + [40.0]}}), "neutral.Perplexity"
        ).result
        == "no"
    )
    # 20 -> 26: 4.5 %, and the interval of so uneven a growth holds 0
    found = rule(
        verdict({"neutral.Perplexity": {"before": [20.0] * 6, "after": [20.0] * 5 + [26.0]}}), "neutral.Perplexity"
    )
    assert (found.result, "too few records" in found.because) == ("not measured", True)
    # all six alike: 5 %
    assert (
        rule(verdict({"neutral.Perplexity": {"before": [20.0] * 6, "after": [21.0] * 6}}), "neutral.Perplexity").result
        == "no"
    )


def test_a_single_question_of_five_that_is_lost_is_left_open():
    assert rule(verdict({"x.Choice": {"before": share(1, 5), "after": share(0.8, 5)}}), "x.Choice").result == (
        "not measured"
    )


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_value_that_is_no_number_is_a_no(broken: float):
    made = verdict(good(forget__Loss=[broken] * 40, neighbours__Loss=[broken] * 40))
    assert said(made) == ("no", "yes", "no")
    assert rule(made, "forget.Loss").result == rule(made, "neighbours.Loss").result == "no"


def test_unharmed_is_not_measured_where_nothing_that_should_stay_was_asked():
    table = {"forget.Choice": {"before": share(1.0), "after": share(0.7)}}
    made = verdict(table)
    assert (made.unharmed.said, made.unharmed.reason) == (
        "not measured",
        "What should stay: give --retain, or a --probe.",
    )
    table["retain.Loss"] = {"before": around(1.0), "after": around(1.0)}
    made = verdict(table)
    assert made.unharmed.said == "yes"
    assert made.unharmed.unmeasured == (
        "What the model knows besides the retain set, which training reads: give a --probe.",
    )
