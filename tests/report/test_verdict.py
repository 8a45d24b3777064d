"""The verdict as a whole: what a run must have done, what a user asks for, and how the three answers follow."""

import math
from dataclasses import replace

import pytest

from expunge.audits.loss import Loss
from expunge.audits.perplexity import Perplexity
from expunge.audits.rouge import Rouge
from expunge.audits.truth_ratio import TruthRatio
from expunge.core.audit import Finding
from expunge.core.request import Request
from expunge.events import Edited, Ended, Started
from expunge.report.answers import Outcome, Verdict, answer_about
from expunge.report.required import Rule
from expunge.report.rules import Asked
from expunge.report.run import Run, Saved
from expunge.report.verdict import conditions, criterion, judge, judge_audit
from tests.report.made_up import good, passages, said, verdict


@pytest.mark.parametrize(
    ("audit", "where", "better"),
    [
        (Loss(), "forget", "higher"),
        (Perplexity(), "paraphrase", "higher"),
        (Rouge(), "forget", "lower"),
        (Loss(), "retain", "lower"),
        (Rouge(), "retain", "higher"),
        (Rouge(), "holdout", "ideal"),
        (TruthRatio(), "forget", "higher"),  # the mean of min(R, 1/R), which is near 0 where the answer is known
        (TruthRatio(), "retain", "higher"),  # the mean of max(0, 1 - R), near 1 where it is known
    ],
)
def test_where_no_ideal_is_known_a_lost_answer_is_better_for_what_should_be_gone(audit, where: str, better: str):
    made = audit.finding(where, 1.0, (1.0, 1.0), [1.0])
    assert made.better == better
    if where in ("forget", "paraphrase"):  # beyond the ideal is no better than short of it
        assert made.with_ideal(0.3).better == audit.finding(where, 1.0, (1.0, 1.0), [1.0], 0.3).better == "ideal"
    else:
        assert made.with_ideal(0.3).better == better


STARTED = Started(2, 10, 100, 20, 5.0, 0.25, "holdout", 0.1)
ASKED = Asked(Request(passages("forget", 4, False), passages("retain", 4, False)), ())


def ended(step: int, short: float, rise: float | None) -> Ended:
    return Ended("all 20 steps were taken", step, 20, True, 4.9, short, rise)


def results(outcomes) -> list[tuple[str, str, float, float, str]]:
    assert all(outcome.condition for outcome in outcomes)
    return [(each.answer, each.rule, each.value, each.bound, each.result) for each in outcomes]


def answers(run: Run, *rules: str, findings: list[Finding] | None = None) -> Verdict:
    return judge([Rule.parse(rule) for rule in rules], findings or [], run, ASKED)


def test_a_runs_own_criterion_by_hand():
    run = Run(STARTED, ended=ended(16, 0.25, 0.11))
    short = "forget examples short of 5.00 nats (that of the holdout set), on average <= slack"
    assert results(criterion(run)) == [
        ("forgotten", "kept step >= 1", 16, 1, "yes"),
        ("forgotten", short, 0.25, 0.25, "yes"),
        ("unharmed", "rise of the retain loss <= budget (nats)", 0.11, 0.1, "no"),
    ]
    assert [each.result for each in criterion(Run(STARTED, ended=ended(1, 0.26, 0.1)))] == ["yes", "no", "yes"]
    free = Run(replace(STARTED, level=None, max_retain_increase=None), ended=ended(0, 0.0, None))
    assert results(criterion(free)) == [("forgotten", "kept step >= 1", 0, 1, "no")]
    assert said(answers(run)) == ("not measured", "not measured", "no")
    assert said(answers(free)) == ("no", "not measured", "not measured")
    assert answers(free).forgotten.reason == "kept step >= 1 – Missed, whatever the audits say."


def test_conditions_alone_show_nothing_and_one_that_is_missed_makes_it_no():
    fine, ruined = Run(STARTED, ended=ended(16, 0.0, 0.0)), Run(STARTED, ended=ended(16, 0.3, 0.0))
    assert said(answers(fine)) == ("not measured",) * 3
    assert answers(fine).is_met
    assert said(verdict(good(), fine)) == ("yes",) * 3
    assert said(verdict(good(), ruined)) == ("no", "yes", "yes")
    assert not verdict(good(), ruined).is_met


def test_a_method_without_steps_must_have_changed_a_number():
    told = "numbers of the model changed >= 1 (something changed)"
    for changed, result in ((0, "no"), (1, "yes")):
        run = Run(edited=Edited(changed, 9, 0.0, {}))
        assert results(answers(run).rules) == [("forgotten", told, changed, 1, result)]
    assert answers(Run()).rules == ()  # a method that says nothing of itself


def saved(moved: float | None) -> Saved:
    return Saved(True, 0.0, moved, "float32 safetensors")


def test_a_step_that_moved_no_weight_changed_nothing():  # V06
    run = Run(STARTED, ended=ended(16, 0.0, 0.0), saved=saved(0.0), changed=0)
    outcomes = {outcome.rule: outcome.result for outcome in verdict(good(), run).rules}
    assert outcomes["kept step >= 1"] == "yes"
    assert outcomes["numbers of the model changed >= 1 (something changed)"] == "no"
    assert verdict(good(), run).forgotten.said == "no"


@pytest.mark.parametrize(("moved", "met"), [(0.0, False), (9.9e-5, False), (1e-4, True), (3.0, True), (None, True)])
def test_weights_that_moved_by_less_than_rounding_changed_no_answer(moved: float | None, met: bool):  # V06
    run = Run(STARTED, ended=ended(16, 0.0, 0.0), saved=saved(moved), changed=7)
    assert answers(run).is_met is met


def test_what_was_saved_is_counted_not_what_an_edit_said_of_itself():
    run = Run(edited=Edited(9, 9, 1.0, {}), saved=saved(1.0), changed=0)  # what it changed was lost in rounding
    assert [(outcome.value, outcome.result) for outcome in criterion(run)][0] == (0.0, "no")


def test_what_should_stay_is_held_to_a_floor_unless_the_run_has_a_budget():
    free = Run(replace(STARTED, level=None, max_retain_increase=None), ended=ended(9, 0.0, None), changed=7)
    for rise, met in ((0.5, True), (math.log(2), True), (0.70, False), (600.0, False), (math.nan, False)):
        assert answers(replace(free, retain_rise=rise)).is_met is met
    for rise, met in ((0.0, True), (0.1, True), (0.11, False), (1.0, False)):  # V04
        assert answers(replace(free, degenerate_rise=rise)).is_met is met
    over = Run(replace(STARTED, max_retain_increase=9.0), ended=ended(16, 0.0, 5.0), retain_rise=5.0)
    assert answers(over).is_met  # a budget of 9 nats was asked for
    assert [each.rule for each in conditions(over) if each.answer == "unharmed"] == [
        "rise of the retain loss <= budget (nats)"
    ]


def found(value: float, model: str, where: str = "forget", audit: str = "Choice") -> Finding:
    return Finding(audit, where, value, value, value, 10, "a definition", model=model)


def test_what_a_user_asks_for_is_added_to_the_answer_that_it_serves():
    findings = [found(1.0, "before"), found(0.2, "after"), found(0.9, "before", "world"), found(0.5, "after", "world")]
    made = answers(Run(), "forget.Choice <= 0.25", "world.Choice >= before - 0.05", findings=findings)
    assert said(made) == ("yes", "not measured", "no")
    assert made.forgotten.reason == "As in a model that never saw it, which the model before is not: forget.Choice."
    assert made.unharmed.reason == "world.Choice – Not as it was asked for."
    kept = answers(Run(), "world.Choice >= 0.4", findings=findings)
    assert kept.unharmed.said == "yes"
    ruined = answers(Run(edited=Edited(9, 9, 1.0, {}), retain_rise=5.0), "world.Choice >= 0.4", findings=findings)
    assert ruined.unharmed.said == "no"  # the floor stays where a rule asks for less


def test_what_a_user_asks_for_and_was_not_measured_is_a_no():
    made = answers(Run(), "forget.Rouge <= 0.5", findings=[found(0.2, "after")])
    assert (made.forgotten.said, made.is_met) == ("no", False)
    assert made.forgotten.reason.startswith("forget.Rouge – Asked for, and not measured")


def test_an_audit_alone_is_judged_by_what_is_asked_for_and_only_by_that():
    before = [replace(found(0.3, "before"), ideal=0.25)]
    assert judge_audit([], before) is None
    made = judge_audit([Rule.parse("forget.Choice <= 0.25"), Rule.parse("forget.Choice <= before")], before)
    assert [(each.rule, each.value, each.bound, each.result) for each in made.rules] == [
        ("forget.Choice <= 0.25", 0.3, 0.25, "no"),
        ("forget.Choice <= before", 0.3, 0.3, "yes"),
    ]
    assert said(made) == ("no", "not measured", "not measured")


def test_every_set_serves_one_answer():
    served = {"forget": "forgotten", "forget_2": "forgotten", "paraphrase": "forgotten", "stand_in": "forgotten"}
    served |= {"forget vs holdout": "traceless", "retain": "unharmed", "holdout": "unharmed", "world": "unharmed"}
    for where, answer in served.items():
        assert answer_about(where) == answer


def test_a_verdict_is_its_three_answers():
    made = verdict(good())
    assert [name for name, _ in made] == ["forgotten", "traceless", "unharmed"]
    assert {rule.answer for rule in made.rules} == {"forgotten", "traceless", "unharmed"}
    for name, answer in made:
        assert {rule.answer for rule in answer.rules} == {name}
    assert isinstance(made.rules[0], Outcome)
