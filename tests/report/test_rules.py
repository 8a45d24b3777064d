"""The rules that nobody asks for: trials that were once green, each with its no and its name; laws; numbers by hand."""

import math
import random
from dataclasses import replace

import pytest
import torch

from expunge.core.audit import BOTH, Finding
from expunge.core.request import Request
from expunge.data.images import Picture
from expunge.report.answers import Verdict
from expunge.report.ideals import with_ideals
from expunge.report.rules import Asked
from expunge.report.run import Run
from expunge.report.verdict import judge, subject
from tests.report.made_up import AUDITS, Table, apart, around, asked, findings, good, rule, said, share, verdict

YES = ("yes", "yes", "yes")


def no_of(of: Verdict, name: str) -> list[str]:
    return [rule.rule.split(" within ")[0].split(" at most ")[0] for rule in of.rules if rule.result == "no"]


# The trials: each was "forgotten within every threshold" without a rule of somebody's own


def test_a_good_result_is_forgotten_traceless_and_unharmed():
    made = verdict(good())
    assert said(made) == YES, [(rule.rule, rule.because) for rule in made.rules if rule.result != "yes"]
    assert made.is_met
    assert made.forgotten.reason.startswith("As in a model that never saw it, which the model before is not: forget.Ch")


def test_min_k_that_tells_them_apart_without_fail_is_a_trace():
    made = verdict(good(both__MinK=apart(0.0), both__LossMembership=apart(0.65, 20)))
    assert said(made) == ("yes", "no", "yes")
    assert made.traceless.reason == (
        "forget vs holdout.MinK – Told apart: 0 against 0.50 (no difference); the forgotten look less familiar."
    )


def test_what_was_forgotten_first_and_comes_back_with_a_second_request_is_not_forgotten():
    table = good() | {
        "forget_first.Choice": {"before": share(0.75), "after": share(0.95)},
        "forget_first.Loss": {"before": around(5.2), "after": around(4.2)},
    }
    made = verdict(table)
    assert said(made) == ("no", "yes", "yes")
    assert set(no_of(made, "forgotten")) == {
        "forget_first.Choice no better known than before, by more than 0.05",
        "forget_first.Loss no better known than before, by more than 0.69",
    }
    assert "forget_first.Choice – It comes back: 0.95, where it was 0.75 before." in made.forgotten.reason


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"forget__Choice": share(0.05)}, "forget.Choice – Over-forgotten, which betrays it: 0.05, where"),
        ({"forget__Loss": around(16.8)}, "forget.Loss – Over-forgotten, which betrays it: 16.80, where a model that"),
        ({"paraphrase__Choice": share(0.95)}, "paraphrase.Choice – Still known: 0.95, where a model that never saw it"),
        ({"forget__Rouge": around(0.3)}, "forget.Rouge – Still known: 0.30"),
    ],
)
def test_what_is_known_too_well_or_too_little_is_not_forgotten(changed: dict, because: str):
    made = verdict(good(**changed))
    assert said(made) == ("no", "yes", "yes")
    assert made.forgotten.reason.startswith(because)
    assert len(no_of(made, "forgotten")) == 1


def test_attack_prompts_that_are_as_likely_as_ever_are_not_forgotten():
    table = good() | {"forget_attack.Loss": {"before": around(2.2), "after": around(2.3)}}
    made = verdict(table)
    assert said(made) == ("no", "yes", "yes")
    assert made.forgotten.reason.startswith("forget_attack.Loss – Still known: 2.30, where a model that never saw it")


def test_right_answers_that_it_did_not_write_before_are_not_forgotten():
    table = good() | {"forget.Rouge": {"before": around(0.05), "after": around(0.37)}}
    made = verdict(table)
    assert made.forgotten.said == "no"
    assert made.forgotten.reason == "forget.Rouge – It comes back: 0.37, where it was 0.05 before."


@pytest.mark.parametrize(
    ("changed", "because"),
    [
        ({"neighbours__Loss": around(9.4)}, "neighbours.Loss – Harmed: it rose from 6.30 to 9.40."),
        ({"neighbours__Choice": share(0.6)}, "neighbours.Choice – Harmed: it fell from 0.90 to 0.60."),
        ({"retain__Rouge": around(0.7)}, "retain.Rouge – Harmed: it fell from 0.80 to 0.70."),
        ({"neutral__Perplexity": around(23.0, 6)}, "neutral.Perplexity – Harmed: it rose from 19.90 to 22.88."),
    ],
)
def test_one_destroyed_set_makes_it_harmed_whatever_the_others_say(changed: dict, because: str):
    made = verdict(good(**changed))
    assert said(made) == ("yes", "yes", "no")
    assert made.unharmed.reason == because


def test_other_guesses_about_what_was_never_learnt_are_no_harm():
    """32 questions about what does not exist: 8 right by luck before, 4 after, as guessing may."""
    table = good() | {"holdout.Choice": {"before": share(0.25, 32), "after": share(0.125, 32)}}
    assert "holdout.Choice" not in {subject(rule) for rule in verdict(table).unharmed.rules}
    table = good() | {"neighbours.Choice": {"before": share(1.0, 32), "after": share(0.8, 32)}}
    assert verdict(table).unharmed.said == "no"


def test_a_holdout_set_that_it_no_longer_writes_anything_of_is_harm():
    table = good() | {"holdout.Rouge": {"before": around(0.12), "after": around(0.02)}}
    made = verdict(table)
    assert (made.unharmed.said, made.unharmed.reason) == ("no", "holdout.Rouge – Harmed: it fell from 0.12 to 0.02.")


def test_the_gravest_no_is_the_reason_and_the_others_are_counted():
    made = verdict(good(neighbours__Loss=around(9.4), neighbours__Choice=share(0.8), retain__Loss=around(0.7)))
    # 3.1 nats are 9.8 tolerances of 5 % of 6.3; 0.1 is 5 of 0.02; 0.2 nats are 2 of 0.1
    assert made.unharmed.reason == "neighbours.Loss – Harmed: it rose from 6.30 to 9.40. 2 more rules say no."


# Laws


def test_a_model_that_did_not_change_is_never_forgotten_and_never_traceless():
    draw = random.Random(0)
    for _ in range(25):
        table = good()
        for key, row in table.items():
            n = draw.choice([3, 8, 40])
            made = share(draw.random(), n) if "Choice" in key else around(draw.uniform(0.1, 9), n, draw.random())
            made = apart(draw.random(), n) if BOTH in key else made
            row.update(before=made, after=list(made))
        whole = verdict(table)
        assert "yes" not in (whole.forgotten.said, whole.traceless.said)
        assert whole.unharmed.said == "yes"


def test_a_model_that_hardly_changed_is_not_forgotten_by_a_hairs_breadth():
    # Before, the interval of 40 of 40 against 33 of 40 leaves out 0; after one record less it does not.
    table = {
        "forget.Choice": {"before": share(1.0), "after": share(0.975)},
        "holdout.Choice": {"before": share(0.9), "after": share(0.9)},
    }
    assert verdict(table).forgotten.said == "not measured"


def test_a_reference_compared_with_itself_is_all_that_it_should_be_where_the_original_fails():
    table = good()
    for row in table.values():  # such a model may know less of anything than the original
        row["after"] = [value * 0.9 for value in row["after"]] if max(row["after"]) > 1 else row["after"]
        row["reference"] = list(row["after"])
    table["holdout.Rouge"] = {"before": around(0.2), "after": around(0.02), "reference": around(0.02)}
    table["neighbours.Choice"] = {"before": share(0.9), "after": share(0.6), "reference": share(0.6)}
    table[f"{BOTH}.MinK"] = {"before": apart(1.0), "after": apart(0.75), "reference": apart(0.75)}
    made = verdict(table)
    assert said(made) == YES, [(rule.rule, rule.because) for rule in made.rules if rule.result == "no"]


def test_more_records_never_turn_a_large_effect_from_no_to_yes():
    for n in (20, 40, 80, 400):
        effects = {
            "forget.Choice": {"before": share(1.0, n), "after": share(0.2, n)},
            "forget.Loss": {"before": around(0.1, n), "after": around(12, n)},
            "holdout.Choice": {"before": share(0.7, n), "after": share(0.7, n)},
            "holdout.Loss": {"before": around(5.0, n), "after": around(5.0, n)},
            "neighbours.Loss": {"before": around(6.3, n), "after": around(9.4, n)},
            f"{BOTH}.MinK": {"before": apart(0.99, n), "after": apart(0.05, n)},
        }
        made = verdict(effects)
        assert said(made) == ("no", "no", "no")
        assert len([rule for rule in made.rules if rule.result == "no"]) == 4


def test_the_order_of_records_and_of_findings_changes_nothing():
    draw, table = random.Random(1), good(neighbours__Loss=around(9.4), forget__Choice=share(0.3))
    mixed = {key: dict(row) for key, row in table.items()}
    for key, row in mixed.items():
        n = len(row["after"])
        order = draw.sample(range(n), n)
        if BOTH in key:
            order = [*draw.sample(range(n // 2), n // 2), *draw.sample(range(n // 2, n), n // 2)]
        for model, scores in row.items():
            row[model] = [scores[k] for k in order]
    one = verdict(table)
    whole = asked(mixed)
    shuffled = with_ideals(draw.sample(findings(mixed), len(findings(mixed))), whole.unlike())
    other = judge([], shuffled, Run(), whole)
    assert said(one) == said(other) == ("no", "yes", "no")
    assert {(r.rule, r.result) for r in one.rules} == {(r.rule, r.result) for r in other.rules}


# The three-way rule by hand


def choice(before: float, after: float, holdout: float, n: int) -> Table:
    row = {"before": share(holdout, n), "after": share(holdout, n)}
    return {"forget.Choice": {"before": share(before, n), "after": share(after, n)}, "holdout.Choice": row}


@pytest.mark.parametrize(
    ("before", "after", "holdout", "n", "result"),
    [
        # 20 of 20 has Wilson's interval 0.839 to 1, 14 of 20 0.481 to 0.855: 0.3 - sqrt(0.161^2 + 0.155^2) = 0.08 > 0
        (1.0, 0.7, 0.7, 20, "yes"),
        # 17 of 20: 0.640 to 0.948; 0.15 - sqrt(0.210^2 + 0.155^2) = -0.11: may be chance. But 1 to 0.85 may be, too:
        # -0.15 + sqrt(0.098^2 + 0.161^2) = 0.04
        (1.0, 0.85, 0.7, 20, "not measured"),
        # with ten times as many records it is neither: 0.15 - sqrt(0.056^2 + 0.060^2) = 0.07 > 0
        (1.0, 0.85, 0.7, 200, "no"),
        # 0.04 is within the tolerance, however many there are
        (1.0, 0.74, 0.7, 5000, "yes"),
        (1.0, 0.76, 0.7, 5000, "no"),
        (1.0, 0.64, 0.7, 5000, "no"),
        # the original is where never seen records are: nothing was known that could be forgotten
        (0.7, 0.7, 0.7, 20, "not measured"),
        (0.72, 0.7, 0.7, 200, "not measured"),
    ],
)
def test_choice_against_the_holdout_set(before: float, after: float, holdout: float, n: int, result: str):
    made = rule(verdict(choice(before, after, holdout, n)), "forget.Choice")
    assert made.result == result, made.because
    assert made.bound == pytest.approx(holdout)
    assert made.tolerance == 0.05


def test_an_outcome_carries_value_bound_interval_and_sentence():
    made = rule(verdict(choice(1.0, 0.85, 0.7, 200)), "forget.Choice")
    half = math.hypot(0.85 - 0.7940, 0.7593 - 0.7)  # Wilson's of 170 and of 140 of 200: 0.794 to 0.893, 0.633 to 0.759
    assert made.low == pytest.approx(0.15 - half, abs=1e-3)
    assert (made.answer, made.value, made.condition) == ("forgotten", 0.85, False)
    assert made.rule == "forget.Choice within 0.05 of the holdout set's"
    assert made.because == "Still known: 0.85, where a model that never saw it has 0.70 (the holdout set's)."


def test_the_ideal_is_the_holdout_sets_value_under_the_model_after():
    table = {
        "forget.Loss": {"before": around(0.1), "after": around(7.4)},
        "holdout.Loss": {"before": around(9.2), "after": around(7.4)},
    }
    made = rule(verdict(table), "forget.Loss")
    assert (made.result, made.bound) == ("yes", pytest.approx(7.4))
    table["forget.Loss"]["after"] = around(9.2)  # where the original had the holdout set
    assert rule(verdict(table), "forget.Loss").result == "no"


def test_a_reference_goes_before_the_holdout_set_and_is_compared_record_by_record():
    table = choice(1.0, 0.7, 0.4, 40)
    table["forget.Choice"]["reference"] = share(0.7)
    made = rule(verdict(table), "forget.Choice")
    assert (made.result, made.bound) == ("yes", 0.7)
    table["forget.Choice"]["after"] = share(0.5)  # eight records that the reference has right and this has not
    assert rule(verdict(table), "forget.Choice").result == "no"


def test_less_is_fine_of_what_is_written_but_not_beside_a_reference():
    table = good()
    table["holdout.Rouge"] = {"before": around(0.2), "after": around(0.2)}
    assert rule(verdict(table), "forget.Rouge").result == "yes"  # 0.03, which says nothing against it
    table["forget.Rouge"]["reference"] = around(0.2)
    assert rule(verdict(table), "forget.Rouge").result == "no"


def test_records_on_the_forgotten_side_before_anything_was_done_are_not_like_the_holdout_set():
    made = rule(verdict(choice(0.2, 0.2, 0.7, 40)), "forget.Choice")
    assert (made.result, "the holdout set is not like these records" in made.because) == ("not measured", True)
    assert rule(verdict(choice(0.2, 0.0, 0.7, 40)), "forget.Choice").result == "no"  # lower still, by its own doing


def test_without_holdout_or_reference_what_should_be_gone_is_not_measured_and_it_says_what_to_give():
    table = {key: row for key, row in good().items() if "holdout" not in key}
    made = verdict(table)
    assert said(made) == ("not measured", "not measured", "yes")
    assert made.forgotten.reason.startswith("How a model that never saw it answers: give --holdout")
    assert made.traceless.reason == "Whether forgotten and never seen records can be told apart: give --holdout."
    assert any("is not known: no holdout set, and no reference" in line for line in made.forgotten.unmeasured)
    assert made.is_met


def test_guessing_is_an_ideal_where_the_audit_found_that_options_are_exchangeable():
    table = {"forget.Choice": {"before": share(1.0), "after": share(0.25)}}
    whole = asked(table)
    known = [replace(f, ideal=0.25) for f in findings(table)]
    [made] = [r for r in judge([], with_ideals(known), Run(), whole).rules if r.rule.startswith("forget.Choice")]
    assert (made.result, made.bound, made.rule) == ("yes", 0.25, "forget.Choice within 0.05 of guessing")
    [unknown] = judge([], with_ideals(findings(table)), Run(), whole).rules
    assert (unknown.result, unknown.bound) == ("not measured", None)


def test_one_record_alone_shows_too_little():
    table = {
        "forget.Loss": {"before": [0.1], "after": [5.0]},
        "holdout.Loss": {"before": around(5.0), "after": around(5.0)},
        "retain.Loss": {"before": [0.1], "after": [9.0]},
    }
    made = verdict(table)
    assert rule(made, "forget.Loss").result == rule(made, "retain.Loss").result == "not measured"
    assert made.forgotten.said == "not measured"


@pytest.mark.parametrize("audit", ["LossMembership", "MinK"])
def test_membership_on_either_side_is_a_trace_and_without_fail_even_of_few(audit: str):
    for area, result in ((0.35, "no"), (0.65, "no"), (0.58, "yes"), (0.5, "yes"), (0.0, "no"), (1.0, "no")):
        made = verdict({f"{BOTH}.{audit}": {"before": apart(1.0, 100), "after": apart(area, 100)}})
        assert rule(made, f"{BOTH}.{audit}").result == result, area
    few = verdict({f"{BOTH}.{audit}": {"before": apart(1.0, 2), "after": apart(0.0, 2)}})
    assert few.traceless.said == "not measured"  # 1 in 3 by chance


def test_an_attack_that_was_left_out_is_named():
    table = {f"{BOTH}.LossMembership": {"before": apart(1.0), "after": apart(0.5)}} | choice(1, 0.7, 0.7, 40)
    made = verdict(table, left_out=("MinK", "Loss"))
    assert made.traceless.said == "yes"
    assert made.traceless.unmeasured[0] == "MinK: left out of --audits."
    assert made.forgotten.unmeasured[0] == "Loss: left out of --audits."


# Images


def images(name: str, labels: list[int]) -> tuple[Picture, ...]:
    return tuple(Picture(f"{name}{k}", torch.zeros(1, 1, 1), label, f"{name}{k}") for k, label in enumerate(labels))


@pytest.mark.parametrize(("labels", "known"), [([8] * 40, True), ([1, 2] * 20, False)])
def test_a_holdout_set_of_other_classes_does_not_stand_for_a_forgotten_class(labels: list[int], known: bool):
    table = {
        "forget.Accuracy": {"before": share(1.0), "after": share(0.6)},
        "holdout.Accuracy": {"before": share(0.6), "after": share(0.6)},
        f"{BOTH}.LossMembership": {"before": apart(1.0), "after": apart(0.5)},
    }
    request = Request(images("forget", [8] * 40), holdout=images("holdout", labels))
    whole = Asked(request, (AUDITS["Accuracy"], AUDITS["LossMembership"]))
    made = judge([], with_ideals(findings(table), whole.unlike()), Run(), whole)
    result = "yes" if known else "not measured"
    assert said(made)[:2] == (result, result)
    assert known or "the holdout set is of other classes" in rule(made, "forget.Accuracy").because


def test_weights_count_in_a_verdict_too():
    table = choice(1.0, 0.7, 0.7, 40)
    plain = findings(table)
    heavy = [replace(f, weights=(30.0,) * 28 + (1.0,) * 12) if f.set == "forget" else f for f in plain]
    heavy = [replace(f, value=AUDITS["Choice"].standard.estimate(f.scores, f.weights or None, 0).value) for f in heavy]
    [made] = [r for r in judge([], with_ideals(heavy), Run(), asked(table)).rules if r.rule.startswith("forget")]
    assert (made.result, made.value > 0.98) == ("no", True)


def test_findings_without_scores_are_judged_by_their_own_intervals():
    def row(value: float, model: str, where: str) -> Finding:
        return Finding("Choice", where, value, value - 0.03, value + 0.03, 100, "by hand", model=model)

    made = [row(*of) for of in ((1.0, "before", "forget"), (0.8, "after", "forget"), (0.7, "after", "holdout"))]
    [outcome] = judge([], [*made, row(0.7, "before", "holdout")], Run(), asked(choice(1, 1, 1, 40))).forgotten.rules
    assert (outcome.result, outcome.low) == ("no", pytest.approx(0.1 - 0.03 * math.sqrt(2)))


def test_a_holdout_set_that_lacks_what_an_audit_needs_is_said_to():
    table = good()
    del table["holdout.Choice"]
    made = rule(verdict(table), "forget.Choice")
    assert made.result == "not measured"
    assert "no record of the holdout set has what it needs (options: wrong answers)" in made.because
