"""One half of the records chooses and the other does not: laws of the cut, on what a real run found."""

from dataclasses import replace

import pytest

import expunge
from expunge.core.request import Request
from expunge.errors import DataRefused
from expunge.notation.variants import Variant
from expunge.report.report import Report
from expunge.report.rules import Asked
from expunge.run.choose import audits_of
from expunge.run.halves import HALVES, Halves
from expunge.run.sweep import By, Ranking, Trial
from tests.families import llama, text_request

AUDITS = "Loss, Choice, Perplexity, LossMembership, TruthRatio"
METHOD = "Finetune(objective=GradDiff(), adapter=Bounded(rank=2), learning_rate=0.01, steps=2, stop=None)"
REQUEST = text_request(8)
ASKED = Asked(REQUEST, audits_of(AUDITS, "language"))


@pytest.fixture(scope="module")
def made() -> Report:
    return expunge.unlearn(llama(), REQUEST, METHOD, AUDITS, added_probes=False)


def test_the_halves_of_a_set_are_as_large_have_nothing_in_common_and_do_not_know_its_order():
    halves = Halves.of(ASKED)
    assert set(halves.sizes().values()) == {(4, 4)}
    turned = Request(REQUEST.forget[::-1], REQUEST.retain[::-1], REQUEST.holdout, REQUEST.stand_in)
    assert Halves.of(Asked(turned, ASKED.measures)).chosen == halves.chosen
    twice = replace(REQUEST, forget=tuple(replace(e, id=f"{e.id}-{k}") for e in REQUEST.forget for k in (1, 2)))
    assert Halves.of(Asked(twice, ASKED.measures)).chosen["forget"] == halves.chosen["forget"]


def test_a_finding_of_the_whole_is_made_of_its_halves(made: Report):
    halves = Halves.of(ASKED)
    parts = [{(f.audit, f.set, f.model): f for f in halves.findings(made.findings, half)} for half in HALVES]
    means = 0
    for whole in made.findings:
        key = (whole.audit, whole.set, whole.model)
        if whole.audit == "TruthRatio":  # its value is made of its scores in a way of its own
            assert key not in parts[0]
            continue
        one, other = (part[key] for part in parts)
        assert one.n + other.n == whole.n
        assert sorted((*one.scores, *other.scores)) == sorted(whole.scores)
        if whole.audit in ("Loss", "Choice"):
            means += 1
            assert (one.n * one.value + other.n * other.value) / whole.n == pytest.approx(whole.value, abs=1e-5)
    assert means == 2 * 4 * 2  # audits, sets, models


def test_a_half_is_what_a_request_of_that_half_alone_would_have_found(made: Report):
    halves = Halves.of(ASKED)
    kept = [e for e in REQUEST.forget if e.fact_digest() in halves.chosen["forget"]]
    never = [e for e in REQUEST.holdout if e.fact_digest() in halves.chosen["holdout"]]
    half = Request(tuple(kept), holdout=tuple(never))
    found = {(f.audit, f.set): f for f in halves.findings(made.findings, "validation") if f.model == "after"}
    for audit in audits_of("Loss, LossMembership", "language"):
        for alone in audit(made.model, half):
            assert found[audit.name, alone.set].value == pytest.approx(alone.value, abs=1e-5)


def test_the_test_half_has_no_say(made: Report):
    """Whatever the scores of its records are, the figures that rank stay."""
    ranking = Ranking(Halves.of(ASKED), By.read("forget.Choice", ASKED))
    was = {half: ranking.figures(made.findings, half) for half in HALVES}
    chosen = ranking.halves.chosen

    def spoil(finding):
        sets = ("forget", "holdout") if finding.set == "forget vs holdout" else (finding.set,)
        every = [e for name in sets for e in REQUEST.sets().get(name, ())]
        names = [name for name in sets for _ in REQUEST.sets().get(name, ())]
        inside = [e.fact_digest() in chosen[name] for e, name in zip(every, names, strict=True)]
        scores = tuple(s if keep else s + 1 for s, keep in zip(finding.scores, inside, strict=True))
        return replace(finding, scores=scores, value=-7.0)

    read = ranking.read(Trial(Variant("", {}), None), (made, 0))
    assert (read.validation, read.test) == (was["validation"], was["test"])
    spoilt = [spoil(finding) for finding in made.findings]
    assert ranking.figures(spoilt, "validation") == was["validation"]
    assert ranking.figures(spoilt, "test") != was["test"]


def test_too_few_records_to_cut_are_refused():
    with pytest.raises(DataRefused, match="the forget set has 3. Give 4 at least"):
        Halves.of(Asked(replace(REQUEST, forget=REQUEST.forget[:3]), ASKED.measures))
