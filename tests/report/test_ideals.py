"""What an innocent model would get of each set, by hand, and which way a row is read."""

import pytest

from expunge.core.audit import Finding
from expunge.notation.parse import parse
from expunge.report.ideals import with_ideals

SETS = ("forget", "paraphrase", "retain", "holdout")


def said(where: str, model: str, value: float, guess: float | None = None, audit: str = "Loss") -> Finding:
    return Finding(audit, where, value, value, value, 4, "by hand", ideal=guess, model=model)


def ideals(*findings: Finding) -> dict[tuple[str, str], float | None]:
    """The ideal of each finding, by set and model: the one place that knows how a report works them out."""
    return {(f.set, f.model): f.ideal for f in with_ideals(list(findings))}


def better(where: str, audit: str = "Accuracy", ideal: float | None = None) -> str:
    """Which way a finding is read, whether its ideal is known from the start or only in the report."""
    measure = parse(f"{audit}()")
    begun, ended = (measure.finding(where, 0.4, (0.3, 0.5), [0.4], known) for known in (ideal, None))
    assert ended.with_ideal(ideal).better == begun.better
    return begun.better


# A run whose model forgot (loss 0.1 to 3.0) and lost a little elsewhere; never seen text costs 4.0 before, 5.0 after.
VALUES = {
    "before": {"forget": 0.1, "paraphrase": 0.2, "retain": 1.0, "holdout": 4.0},
    "after": {"forget": 3.0, "paraphrase": 2.5, "retain": 1.1, "holdout": 5.0},
    "reference": {"forget": 3.9, "paraphrase": 3.7, "retain": 0.9, "holdout": 4.1},
}


def run(*models: str, guess: float | None = None, sets: tuple[str, ...] = SETS) -> list[Finding]:
    """Findings of every set by these models; of what should be gone guessing would get `guess`."""
    gone = ("forget", "paraphrase")
    return [said(each, m, VALUES[m][each], guess if each in gone else None) for m in models for each in sets]


def test_without_reference_what_should_be_gone_aims_at_the_holdout_of_the_model_after():
    found = ideals(*run("before", "after"))
    for where in ("forget", "paraphrase"):
        for model in ("before", "after"):
            assert found[where, model] == 5.0
    assert ideals(*run("before"))["forget", "before"] == 4.0  # of an audit, of the model that it looked at


def test_where_the_holdout_set_is_of_other_classes_it_is_no_ideal():
    found = with_ideals(run("before", "after"), {("Loss", "forget"): "of other classes"})
    assert {f.ideal for f in found if f.set == "forget"} == {None}
    assert {f.ideal for f in found if f.set == "paraphrase"} == {5.0}


def test_where_findings_come_in_another_order_the_ideals_are_the_same():
    there = run("before", "after", "reference")
    assert ideals(*there[::-1]) == ideals(*there)


def test_with_a_reference_what_should_be_gone_aims_at_its_value_on_the_same_set():
    found = ideals(*run("before", "after", "reference"))
    assert [found["forget", m] for m in VALUES] == [3.9] * 3
    assert [found["paraphrase", m] for m in VALUES] == [3.7] * 3


def test_the_holdout_goes_before_guessing_and_a_reference_before_both():
    alone = tuple(name for name in SETS if name != "holdout")
    assert ideals(*run("before", "after", guess=0.25, sets=alone))["forget", "after"] == 0.25
    assert ideals(*run("before", "after", guess=0.25))["forget", "after"] == 5.0
    assert ideals(*run("before", "after", "reference", guess=0.25))["forget", "after"] == 3.9


def test_guessing_at_0_is_known_too():
    assert ideals(*run("before", "after", guess=0.0, sets=("forget", "retain")))["forget", "after"] == 0.0


@pytest.mark.parametrize("models", [("before", "after"), ("before", "after", "reference")])
def test_of_any_other_set_the_ideal_is_no_change(models: tuple[str, ...]):
    found = ideals(*run(*models))
    for model in models:
        assert found["retain", model] == 1.0
        assert found["holdout", model] == 4.0


def test_a_probe_is_read_by_its_name():
    probes = [
        said(name, m, v) for name in ("forget_2", "paraphrased", "world") for m, v in (("before", 7), ("after", 8))
    ]
    found = ideals(*probes, *run("before", "after"))
    assert (found["forget_2", "after"], found["paraphrased", "after"]) == (5.0, 5.0)
    assert found["world", "after"] == 7


def test_without_holdout_and_reference_nothing_is_known():
    found = ideals(*run("before", "after", sets=("forget", "retain")))
    assert found["forget", "after"] is None
    assert found["retain", "after"] == 1.0


def test_each_audit_has_the_ideals_of_its_own_numbers():
    other = [said("forget", "after", 0.9, audit="Accuracy")]
    other += [said("holdout", model, 0.3, audit="Accuracy") for model in ("before", "after")]
    made = with_ideals([*run("before", "after"), *other])
    assert [f.ideal for f in made if f.audit == "Accuracy"] == [0.3] * 3
    assert {f.ideal for f in made if f.audit == "Loss" and f.set == "forget"} == {5.0}


def attacks(*models: str) -> list[Finding]:
    """An attack that tells the forgotten from the never seen; an innocent model's is 0.5 on average."""
    value = {"before": 0.95, "after": 0.7, "reference": 0.56}
    return [said("forget vs holdout", m, value[m], 0.5, "MinK") for m in models]


def test_an_attack_aims_at_one_half_or_at_what_the_reference_shows_on_the_same_examples():
    assert ideals(*attacks("before", "after"))["forget vs holdout", "after"] == 0.5
    assert set(ideals(*attacks("before", "after", "reference")).values()) == {0.56}
    # "forget vs holdout" begins with forget, but no holdout finding is its ideal
    stray = said("holdout", "before", 0.1, audit="MinK")
    assert ideals(*attacks("before", "after"), stray)["forget vs holdout", "after"] == 0.5
    unknown = said("forget vs holdout", "after", 0.7, audit="MinK")
    assert ideals(unknown, stray)["forget vs holdout", "after"] is None


def test_nothing_but_the_ideal_is_changed_and_the_order_stays():
    there = run("before", "after")
    made = with_ideals(there)
    assert [(f.audit, f.set, f.model, f.value, f.low, f.high, f.n) for f in made] == [
        (f.audit, f.set, f.model, f.value, f.low, f.high, f.n) for f in there
    ]


@pytest.mark.parametrize("audit", ["Accuracy", "Loss", "Perplexity", "Choice"])
def test_of_what_should_be_gone_a_known_ideal_is_better_than_both_sides_of_it(audit: str):
    assert better("forget", audit, ideal=0.3) == "ideal"
    assert better("paraphrase", audit, ideal=0.3) == "ideal"
    assert better("forget_2", audit, ideal=0.0) == "ideal"


@pytest.mark.parametrize(("audit", "gone", "stays"), [("Accuracy", "lower", "higher"), ("Loss", "higher", "lower")])
def test_without_one_less_memory_is_better_of_what_should_be_gone_and_more_of_what_should_stay(
    audit: str, gone: str, stays: str
):
    assert better("forget", audit) == gone
    assert better("retain", audit) == stays
    assert better("retain", audit, ideal=0.9) == stays  # more than before is no harm
    assert better("world", audit) == stays


def test_the_holdout_should_stay_as_it_was_and_an_attack_should_see_nothing():
    assert better("holdout", ideal=0.3) == "ideal"
    assert better("forget vs holdout", "MinK", ideal=0.5) == "ideal"
