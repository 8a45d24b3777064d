"""Rules that a user asks for: what can be required, and when it is met."""

import math
from dataclasses import replace

import pytest

from expunge.audits.choice import Choice
from expunge.audits.linear_probe import LinearProbe
from expunge.audits.loss import Loss
from expunge.audits.min_k import MinK
from expunge.audits.perplexity import Perplexity
from expunge.audits.rouge import Rouge
from expunge.audits.truth_ratio import TruthRatio
from expunge.core.audit import Finding
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import UsageRefused
from expunge.report.required import Rule, check_rules, read_as_meant
from expunge.summaries.forget_quality import ForgetQuality
from tests.families import text_request


def found(
    value: float, model: str, audit: str = "Choice", where: str = "forget", ideal: float | None = None
) -> Finding:
    return Finding(audit, where, value, value, value, 10, "a definition", ideal=ideal, model=model)


FINDINGS = [
    found(0.95, "before", where="retain", ideal=0.95),
    found(0.90, "after", where="retain", ideal=0.95),
    found(1.0, "before", ideal=0.4),  # no run has two, but where it had, that of the model after would count
    found(0.30, "after", ideal=0.25),
    found(0.26, "reference", ideal=0.25),
    found(0.61, "after", "MinK", "forget vs holdout", 0.5),
    found(0.5, "after", "Rouge", "para"),
]


@pytest.mark.parametrize(
    ("rule", "bound", "met"),
    [
        ("forget.Choice <= 0.3", 0.3, True),
        ("forget.Choice < 0.3", 0.3, False),
        ("forget.Choice >= 0.3", 0.3, True),
        ("forget.Choice > 0.3", 0.3, False),
        ("forget.Choice <= .25", 0.25, False),
        ("forget.Choice <= before", 1.0, True),
        ("forget.Choice <= before - 0.5", 0.5, True),
        ("forget.Choice <= 0.5 * before", 0.5, True),
        ("forget.Choice <= reference + 0.05", 0.31, True),
        ("forget.Choice <= reference", 0.26, False),
        ("forget.Choice <= ideal + 0.05", 0.30, True),
        ("forget.Choice >= -(1)", -1.0, True),
        ("forget.Choice <= (before + 2 * ideal) * 0.2", 0.3, True),
        ("forget vs holdout.MinK <= ideal + 0.2", 0.7, True),
        ("  forget . Choice<=0.3  ", 0.3, True),
        ("para.Rouge >= 1e-1", 0.1, True),
    ],
)
def test_a_rule_compares_the_value_after_with_its_bound(rule: str, bound: float, met: bool):
    outcome = Rule.parse(rule).read(FINDINGS, power=False)
    assert math.isclose(outcome.bound, bound)
    assert (outcome.result == "yes") is met
    assert outcome.rule == rule.strip()


def test_a_bound_that_is_met_on_paper_is_met():
    assert 0.95 - 0.05 != 0.90  # in binary it is 0.8999999999999999
    for rule, met in ((">=", True), ("<=", True), (">", False), ("<", False)):
        assert (Rule.parse(f"retain.Choice {rule} before - 0.05").read(FINDINGS).result == "yes") is met
    # The slack is for rounding alone: a millionth of a point is missed.
    assert Rule.parse("retain.Choice >= before - 0.049999").read(FINDINGS).result == "no"


@pytest.mark.parametrize(
    "rule",
    [
        "forget.Loss >= 0",
        "holdout.Choice >= 0",
        "forget.Rouge <= 1",
        "retain.Choice >= reference - 1",
        "para.Rouge <= before + 9",
        "para.Rouge >= ideal - 9",
    ],
)
def test_what_was_not_measured_never_meets_a_rule(rule: str):  # V03
    outcome = Rule.parse(rule).read(FINDINGS)
    assert outcome.bound is None
    assert outcome.result == "no"


@pytest.mark.parametrize("sign", ["<=", ">=", "<", ">"])
def test_a_value_that_is_no_number_never_meets_a_rule(sign: str):
    findings = [found(math.nan, "after"), found(1.0, "before")]
    assert Rule.parse(f"forget.Choice {sign} 0.5").read(findings).result == "no"
    findings = [found(0.5, "after"), found(math.nan, "before")]
    assert Rule.parse(f"forget.Choice {sign} before").read(findings).result == "no"


def asked(name: str, *options: Passage) -> tuple[Passage, ...]:
    return (Passage(name, (1, 2), 1, "", name, f"What is {name}?", prompt_tokens=(1,), alternatives=options),)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("forget.Choice <= 0.5", "no record of the set 'forget' has what Choice needs (options: wrong answers)"),
        (
            "forget.TruthRatio >= 0.5",
            "no record of the set 'forget' has what TruthRatio needs (options: wrong answers)",
        ),
        ("para.Rouge <= 0.5", "no record of the set 'para' has what Rouge needs (a question)"),
        ("forget vs holdout.Loss <= 1", "Loss is of one set at a time"),
        ("forget.MinK <= 0.6", "MinK is of the set 'forget vs holdout', and needs --holdout"),
        ("forget vs holdout.MinK <= 0.6", "and needs --holdout"),
    ],
)
def test_a_rule_on_what_no_record_has_is_refused_before_the_work(rule: str, said: str):
    text = Passage("text", (1, 2, 3), 1, "", "a plain text")
    request = Request(asked("forget"), asked("retain", text), probes={"para": (text,)})
    audits = [Choice(), TruthRatio(), Rouge(), Loss(), MinK()]
    with pytest.raises(UsageRefused) as refused:
        check_rules([Rule.parse(rule)], audits, [], request)
    assert refused.value.line().startswith(f"expunge: E2-usage: --require '{rule}' could never be measured: ")
    assert said in refused.value.line()
    known = (
        "retain.Choice >= 0.5",
        "retain.TruthRatio >= 0.5",
        "forget.Rouge <= 0.5",
        "forget.Loss >= 1",
        "para.Loss >= 1",
    )
    check_rules([Rule.parse(text) for text in known], audits, [], request)
    seen = Request(request.forget, holdout=asked("holdout"))
    check_rules([Rule.parse("forget vs holdout.MinK <= 0.6")], audits, [], seen)


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


def test_a_summary_can_be_required_where_it_is_run():
    request = Request(asked("forget"), asked("retain"))
    rule = Rule.parse("forget.ForgetQuality >= 0.5")
    check_rules([rule], [TruthRatio()], [ForgetQuality()], request)
    with pytest.raises(UsageRefused, match="ForgetQuality is not run"):
        check_rules([rule], [TruthRatio()], [], request)


def test_a_rule_goes_to_the_answer_that_its_set_serves():
    wanted = {"forget": "forgotten", "para": "unharmed", "paraphrase": "forgotten", "forget vs holdout": "traceless"}
    for where, answer in {**wanted, "retain": "unharmed", "holdout": "unharmed"}.items():
        assert Rule.parse(f"{where}.Loss <= 1").read([]).answer == answer


def test_a_rule_on_what_should_be_gone_that_the_original_meets_too_shows_nothing():
    before, after = found(0.4, "before"), found(0.3, "after")
    met = Rule.parse("forget.Choice <= 0.5").read([before, after])
    assert (met.result, met.because) == ("not measured", "Met, but the original model meets it too.")
    assert Rule.parse("forget.Choice <= 0.35").read([before, after]).result == "yes"
    assert Rule.parse("forget.Choice <= before").read([before, after]).result == "not measured"  # by itself, in truth
    stay = [found(0.4, "before", where="retain"), found(0.4, "after", where="retain")]
    assert Rule.parse("retain.Choice >= 0.3").read(stay).result == "yes"


def test_what_is_required_and_was_asked_of_one_record_alone_is_not_shown():  # V05
    alone = [replace(found(0.0, "after"), n=1), replace(found(1.0, "before"), n=1)]
    outcome = Rule.parse("forget.Choice <= 0.5").read(alone)
    assert (outcome.result, outcome.value) == ("no", 0.0)
    assert "one record alone" in outcome.because
    assert Rule.parse("forget.Choice <= 0.5").read([replace(each, n=2) for each in alone]).result == "yes"


def test_a_value_before_alone_does_not_count_as_the_value_after():
    assert Rule.parse("forget.Choice <= 2").read([found(1.0, "before"), found(1.0, "reference")]).result == "no"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Choice <= 0.25",
        "forget.Choice",
        "forget.Choice <=",
        "forget.Choice == 0.25",
        "forget.Choice = 0.25",
        "forget.Choice <= 0.25 <= 1",
        "forget.Choice <= after",
        "forget.Choice <= befor - 0.05",
        "forget.Choice <= 1 / 2",
        "forget.Choice <= 2 ** 9",
        "forget.Choice <= True",
        "forget.Choice <= 'a'",
        "forget.Choice <= None",
        "forget.Choice <= 1j",
        "forget.Choice <= __import__('os')",
        "forget.Choice <= before.__class__",
        "forget.Choice <= (0.25",
        "forget.Choice <= 0.25; 1",
        "forget.Choice <= [1]",
        "forget.Choice <= lambda: 1",
        "forget.Choice <= " + "9" * 400,
        "forget.Choice <= " + "9" * 5000,
        "forget.Choice <= " + "-" * 5000 + "1",
        "forget.Choice <= " + "(" * 5000,
        "forget.Choice <= " + "+".join("1" * 5000),
        "forget.Choice <= \0",
        "a.b.Choice <= 1",
    ],
)
def test_what_is_not_a_rule_is_refused_with_an_example(text: str):
    with pytest.raises(UsageRefused) as refused:
        Rule.parse(text)
    said = refused.value.line()
    assert said.startswith("expunge: E2-usage: --require '")
    assert "such as forget.Choice <= 0.25" in said
    assert len(said) < 500


def test_a_rule_on_the_forget_set_is_read_as_the_comparison_that_its_audit_is_of():
    request = text_request()
    texts = ("forget.MinK <= 0.6", "forget.Loss >= 1", "forget.LinearProbe <= 1", "retain.MinK <= 0.6")
    rules = tuple(map(Rule.parse, texts))
    made, told = read_as_meant(rules, (MinK(), Loss(), LinearProbe(), ForgetQuality()), request)
    assert [rule.set for rule in made] == ["forget vs holdout", "forget", "forget", "retain"]
    assert [rule.text for rule in made] == [rule.text for rule in rules]
    assert told == ["--require 'forget.MinK <= 0.6' is read as forget vs holdout.MinK: MinK compares the two"]
    without = read_as_meant(rules[:1], (MinK(),), replace(request, holdout=()))
    assert without == (rules[:1], [])  # it is refused by the name that was typed, for want of a holdout set
