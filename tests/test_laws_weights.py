"""Laws of the weights of examples: all ones change nothing to the bit, 0 is absent, 2 is the record twice."""

import dataclasses
import math

import pytest
import torch

from expunge.adapters.full import Full
from expunge.audits._kinds import WhiteBoxAudit
from expunge.core.audit import Audit
from expunge.core.objective import Objective
from expunge.core.predictions import Predictions, Share
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.core.view import Run, View
from expunge.errors import DataRefused
from expunge.internals.gradients import gradient, loss
from expunge.methods.finetune import Finetune
from expunge.notation.parse import Plugin
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from expunge.primitives.statistics import auc, mean_interval, weighted_mean
from tests.families import ANSWERING, AUDIT, EVERY_STEP, OBJECTIVE, family_of, llama, made, moved, state, text_request

KIND = pytest.mark.parametrize("family", ["llama", "mixtral", "vit"])
SETS = ("forget", "retain", "stand_in")


def weighed(examples: tuple[Example, ...], weights: list[float]) -> tuple[Example, ...]:
    return tuple(dataclasses.replace(e, weight=w) for e, w in zip(examples, weights, strict=True))


def twice(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    """The first record stands there twice, as two objects."""
    return (dataclasses.replace(examples[0]), *examples)


def first_counts_double(examples: tuple[Example, ...]) -> tuple[Example, ...]:
    return weighed(examples, [2.0] + [1.0] * (len(examples) - 1))


def value(objective: Objective, family: str, change) -> tuple[float, list[torch.Tensor]]:
    """The objective and its gradient on changed sets, read at once."""
    before, request = family_of(family)
    now = moved(Full().insert(before, request))
    sets = {name: change(request.sets()[name]) for name in SETS}
    views = (View(now, sets, run=Run(level=4.0)), View(before, sets, gradients=False))
    result = objective(*views)
    weights = list(now.trainable().values())
    slopes = torch.autograd.grad(result, weights, allow_unused=True)
    return result.item(), [torch.zeros_like(w) if s is None else s for w, s in zip(weights, slopes, strict=True)]


def objective_of(plugin: Plugin, family: str) -> Objective:
    if plugin.name == "GroupPenalty" or (family != "mixtral" and "experts" in plugin.needs):
        pytest.skip("reads no examples, or what this family has not")
    return made(plugin, Objective)


@KIND
@OBJECTIVE
def test_a_record_that_counts_twice_is_the_record_twice_with_its_gradient(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    by_weight, slopes = value(objective, family, first_counts_double)
    by_copy, others = value(objective, family, twice)
    alone, _ = value(objective, family, tuple)
    assert by_weight == pytest.approx(by_copy, rel=1e-5, abs=1e-6)
    if abs(alone) > 1e-6 and objective.needs:  # a hinge lets go of examples beyond it; a penalty reads none
        assert by_weight != pytest.approx(alone, rel=1e-7)
    largest = max(float(slope.abs().max()) for slope in others)
    for one, other in zip(slopes, others, strict=True):
        assert torch.allclose(one, other, atol=2e-5 * max(largest, 1e-3))


@KIND
@OBJECTIVE
def test_weights_that_are_all_one_change_no_bit(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    plain, slopes = value(objective, family, tuple)
    ones, others = value(objective, family, lambda examples: weighed(examples, [1.0] * len(examples)))
    assert ones == plain
    assert all(torch.equal(one, other) for one, other in zip(slopes, others, strict=True))


def test_a_tensor_of_ones_changes_no_bit_either():
    labels, owner = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 0, 1])
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    plain = Predictions(labels, owner, 2, None, scores)
    weighted = dataclasses.replace(plain, weights=torch.ones(2))
    assert weighted.nll().item() == plain.nll().item()
    assert (
        weighted.over_examples(torch.tensor([1.5, 0.1])).item() == plain.over_examples(torch.tensor([1.5, 0.1])).item()
    )


def test_weighted_means_over_rows_and_examples_worked_by_hand():
    owner = torch.tensor([0, 0, 0, 1])  # three rows of weight 2, one of weight 1
    rows = Predictions(torch.zeros(4).long(), owner, 2, None, torch.zeros(4, 2), weights=torch.tensor([2.0, 1.0]))
    assert rows.over_rows(torch.tensor([1.0, 2.0, 3.0, 7.0])).item() == pytest.approx((2 * 6 + 7) / 7)
    assert rows.over_examples(torch.tensor([1.0, 7.0])).item() == pytest.approx((2 * 1 + 7) / 3)
    part = rows.part_of(Share(rows=14, examples=6))
    assert part.over_rows(torch.tensor([1.0, 2.0, 3.0, 7.0])).item() == pytest.approx((2 * 6 + 7) / 14)


def test_records_of_weight_zero_are_absent_and_weights_below_it_are_refused():
    request = text_request()
    without = Request(request.forget[1:], request.retain, request.holdout)
    zero = Request(weighed(request.forget, [0.0] + [1.0] * 5), request.retain, request.holdout)
    assert zero == without
    assert zero.fingerprint() == without.fingerprint()
    probed = Request(request.forget, probes={"other": weighed(request.retain, [0.0] * 5 + [1.0])})
    assert len(probed.probes["other"]) == 1
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(DataRefused, match="The weight of record line-1 of the forget set must be at least 0"):
            Request(weighed(request.forget, [wrong] + [1.0] * 5))
    with pytest.raises(DataRefused, match="nothing to forget"):
        Request(weighed(request.forget, [0.0] * 6))


@ANSWERING
@AUDIT
def test_an_audit_counts_a_record_of_weight_two_twice(plugin: Plugin, family: str):
    audit = made(plugin, Audit)
    if isinstance(audit, WhiteBoxAudit):
        pytest.skip("what looks inside a network counts each record once")
    network, request = family_of(family)
    if not all(network.answers_to(kind) for kind in audit.reads):
        pytest.skip(f"{plugin.name} asks what a {family} does not answer")
    forget, holdout = request.forget, request.holdout
    by_weight = audit(network, Request(first_counts_double(forget), holdout=first_counts_double(holdout)))
    by_copy = audit(network, Request(twice(forget), holdout=twice(holdout)))
    for one, other in zip(by_weight, by_copy, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6, abs=1e-9)
        assert one.n == other.n - (2 if "vs" in one.set else 1)  # a record that counts twice is one record
        assert one.low <= one.value <= one.high
    ones = audit(network, Request(weighed(forget, [1.0] * 6), holdout=holdout))
    assert ones == audit(network, Request(forget, holdout=holdout))


def test_a_gradient_over_whole_sets_counts_them_too():
    network, request = llama(), text_request()
    by_weight, by_copy = (
        gradient(network, loss, (1.0, change(request.forget))) for change in (first_counts_double, twice)
    )
    assert all(torch.allclose(by_weight[name], by_copy[name], atol=1e-6) for name in by_copy)


def test_a_run_with_weights_reads_its_parts_as_it_reads_the_step_at_once():
    request = text_request()
    request = Request(first_counts_double(request.forget), weighed(request.retain, [0.5] * 3 + [3.0] * 3))
    states = []
    for accumulate in (1, 3):
        plan = Finetune(
            Ascent() + RetainNLL(), Full(), 1e-3, 3, 6, 6, accumulate=accumulate, stop=EVERY_STEP, norms=False
        )
        states.append(state(plan(llama(), request).plain())["values"])
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-5) for name in states[0])


# The statistics, worked by hand


def test_a_weighted_area_counts_each_pair_as_often_as_the_product_of_its_weights():
    # 3 > 1, 3 > 2, 1 = 1 (half), 1 < 2; weights 1 and 2 of the positives, 1 and 3 of the negatives
    assert auc([3.0, 1.0], [1.0, 2.0], [1.0, 2.0], [1.0, 3.0]) == pytest.approx((1 + 3 + 2 * 0.5) / (3 * 4))
    assert auc([3.0, 1.0], [1.0, 2.0], None, [1.0, 3.0]) == pytest.approx((1 + 3 + 0.5) / (2 * 4))
    assert auc([3.0, 1.0], [1.0, 2.0], [1.0, 1.0], [1.0, 1.0]) == auc([3.0, 1.0], [1.0, 2.0])


def test_a_weight_makes_no_interval_narrower_than_more_records_would():
    values = [0.0, 1.0, 1.0, 1.0]
    assert weighted_mean(values, [3.0, 1.0, 1.0, 1.0]) == 0.5
    low, high = mean_interval(values, [3.0, 1.0, 1.0, 1.0])  # 36 / 12 = 3 records at most
    assert low <= 0.5 <= high
    assert high - low > mean_interval([0.0, 0.0, 1.0, 1.0])[1] - mean_interval([0.0, 0.0, 1.0, 1.0])[0]
    assert mean_interval([0.2, 0.4], [1.0, 1.0]) == mean_interval([0.2, 0.4])


def test_a_cached_reply_has_the_weight_of_the_record_that_is_asked_about():
    network, request = llama(), text_request()
    said = network.ask(LogProbabilities(), first_counts_double(request.forget))
    assert said.weights is not None
    assert said.weights.tolist() == [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert network.ask(LogProbabilities(), request.forget).weights is None
