"""Forget quality: made of two models' truth ratios, with the side of the difference."""

import pytest

from expunge.core.audit import Finding
from expunge.report.ideals import with_ideals
from expunge.report.required import Rule
from expunge.summaries.forget_quality import ForgetQuality
from expunge.summaries.truth_ratio_shift import TruthRatioShift

DERIVED = ("ForgetQuality", "TruthRatioShift")


def ratios(model: str, scores: tuple[float, ...], where: str = "forget", audit: str = "TruthRatio") -> Finding:
    return Finding(audit, where, 0.5, 0.4, 0.6, len(scores), "a definition", model=model, scores=scores)


LOW, HIGH = (0.1, 0.2, 0.3, 0.4), (0.6, 0.7, 0.8, 0.9)
ALL = [ratios("before", LOW), ratios("reference", HIGH), ratios("after", HIGH)]


def with_quality(findings: list[Finding]) -> list[Finding]:
    return [*findings, *ForgetQuality()(findings), *TruthRatioShift()(findings)]


def derived(findings: list[Finding]) -> dict[tuple[str, str, str], Finding]:
    made = with_ideals(with_quality(findings))
    return {(f.set, f.audit, f.model): f for f in made if f.audit in DERIVED}


def test_each_model_is_compared_with_the_reference():
    found = derived(ALL)
    assert set(found) == {("forget", name, model) for name in DERIVED for model in ("before", "after")}
    # 4 below 4: 2 of the C(8, 4) = 70 orders separate them
    assert found["forget", "ForgetQuality", "before"].value == pytest.approx(2 / 70)
    assert found["forget", "ForgetQuality", "after"].value == 1.0
    assert found["forget", "TruthRatioShift", "before"].value == -1.0  # lower ratios: it still knows
    assert found["forget", "TruthRatioShift", "after"].value == 0.0
    assert all(f.low == f.value == f.high for f in found.values())


def test_over_forgetting_has_the_same_p_value_and_the_other_sign():
    under, over = (derived([ratios("after", s), ratios("reference", (0.45, 0.5, 0.52, 0.55))]) for s in (LOW, HIGH))
    quality, shift = (("forget", name, "after") for name in DERIVED)
    assert under[quality].value == over[quality].value == pytest.approx(2 / 70)
    assert (under[shift].value, over[shift].value) == (-1.0, 1.0)


def test_its_ideal_is_that_of_the_reference_against_itself():
    found = derived(ALL)
    assert {f.ideal for f in found.values() if f.audit == "ForgetQuality"} == {1.0}
    assert {f.ideal for f in found.values() if f.audit == "TruthRatioShift"} == {0.0}
    assert {f.better for f in found.values()} == {"ideal"}


def test_both_need_truth_ratios_and_a_reference():
    for summary in (ForgetQuality(), TruthRatioShift()):
        assert summary.can_read(["Loss", "TruthRatio"], referenced=True)
        assert not summary.can_read(["Loss", "TruthRatio"], referenced=False)
        assert not summary.can_read(["Loss"], referenced=True)


def test_without_a_reference_or_on_what_should_stay_there_is_none():
    assert not derived([ratios("before", LOW), ratios("after", HIGH)])
    assert not derived([ratios(model, LOW, "retain") for model in ("before", "after", "reference")])
    assert not derived([ratios(model, LOW, audit="Loss") for model in ("before", "after", "reference")])
    assert with_quality([]) == []


def test_a_rule_can_require_it():
    findings = with_ideals(with_quality(ALL))
    assert Rule.parse("forget.ForgetQuality >= 0.5").read(findings).result == "yes"
    assert Rule.parse("forget.TruthRatioShift >= 0").read(findings).result == "yes"
    assert Rule.parse("forget.ForgetQuality <= before").read(findings).result == "no"
