"""Laws that every objective keeps on every family of models: a new file is under test before its author writes one."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from expunge.adapters.full import Full
from expunge.core.model import Network
from expunge.core.objective import Objective, Sum
from expunge.core.predictions import Share
from expunge.core.question import HiddenStates, Routes
from expunge.core.view import Run, View
from expunge.errors import ModelRefused
from expunge.notation.parse import Plugin, parse
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from tests.families import (
    LANGUAGE,
    OBJECTIVE,
    ROWS,
    assert_as_found,
    family_of,
    made,
    moved,
    state,
)

LEVEL = 4.0
"""Nats: some examples of every family lie above it and some below."""


def views(family: str, **options) -> tuple[View, View, Network, Network]:
    """What a network that has moved says, and what it said before."""
    before, request = family_of(family)
    now = moved(Full().insert(before, request))
    if options.pop("padded", False):
        now, before = (dataclasses.replace(network, trees=0) for network in (now, before))
    sets = {name: request.sets()[name] for name in ("forget", "retain", "stand_in")}
    return View(now, sets, run=Run(level=LEVEL)), View(before, sets, gradients=False), now, before


def objective_of(plugin: Plugin, family: str) -> Objective:
    """The objective; where it reads hidden states, and a family has none, it must say so."""
    objective = made(plugin, Objective)
    if family != "mixtral" and "experts" in plugin.needs:
        now, before, *_ = views(family)
        with pytest.raises(ModelRefused, match="has no experts"):
            objective(now, before)
        pytest.skip(f"{plugin.name} reads a router, which a {family} has not, and says so")
    if family == "resnet" and "hidden" in plugin.needs:
        now, before, *_ = views(family)
        with pytest.raises(ModelRefused, match="no transformer blocks, so no hidden states"):
            objective(now, before)
        pytest.skip(f"{plugin.name} reads hidden states, which a {family} has not, and says so")
    return objective


def read(view: View) -> set[str]:
    """The sets that were asked about in any way."""
    return {name.partition(",")[0] for name, _ in (*view.replies, *view.passes)}


def reordered(view: View) -> View:
    return View(view.model, {name: batch[::-1] for name, batch in view.sets.items()}, run=view.run)


@ROWS
@OBJECTIVE
def test_an_objective_is_a_finite_scalar_in_float32_or_wider(plugin: Plugin, family: str):
    now, before, *_ = views(family)
    value = objective_of(plugin, family)(now, before)
    assert value.shape == ()
    assert value.dtype in (torch.float32, torch.float64)
    assert math.isfinite(value.item())


@ROWS
@OBJECTIVE
def test_the_order_of_examples_does_not_matter_to_an_objective(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *_ = views(family)
    value = objective(now, before).item()
    assert objective(reordered(now), reordered(before)).item() == pytest.approx(value, abs=1e-5, rel=1e-5)


@LANGUAGE
@OBJECTIVE
def test_padding_does_not_matter_to_an_objective(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, network, _ = views(family)
    padded_now, padded_before, *_ = views(family, padded=True)
    assert network.trees > 0
    value = objective(now, before).item()
    assert objective(padded_now, padded_before).item() == pytest.approx(value, abs=1e-5, rel=1e-5)


@ROWS
@OBJECTIVE
def test_parts_of_a_step_with_its_shares_add_up_to_the_whole_with_its_gradient(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, network, _ = views(family)
    shares = {name: Share(sum(e.rows for e in batch), len(batch)) for name, batch in now.sets.items()}
    weights = list(network.trainable().values())
    whole = objective(now, before)
    gradient = torch.autograd.grad(whole, weights, allow_unused=True)
    parts, summed = 0.0, [torch.zeros_like(weight) for weight in weights]
    for cut in (slice(0, 2), slice(2, None)):  # two examples of six, then four, of unequal lengths
        sets = {name: batch[cut] for name, batch in now.sets.items()}
        options = {"run": Run(level=LEVEL, whole=now.sets)}
        part = objective(
            View(now.model, sets, shares, **options), View(before.model, sets, shares, gradients=False, **options)
        )
        parts += part.item()
        for total, one in zip(summed, torch.autograd.grad(part, weights, allow_unused=True), strict=True):
            total += 0 if one is None else one
    assert parts == pytest.approx(whole.item(), abs=1e-5, rel=1e-5)
    largest = max(float(one.abs().max()) for one in gradient if one is not None)
    for total, one in zip(summed, gradient, strict=True):
        assert torch.allclose(total, torch.zeros_like(total) if one is None else one, atol=1e-5 * largest)


@ROWS
@OBJECTIVE
def test_an_objective_never_changes_the_reference_nor_gives_it_a_gradient(plugin: Plugin, family: str):
    now, before, network, reference = views(family)
    was = state(reference)
    objective_of(plugin, family)(now, before).backward()
    assert_as_found(reference, was)
    assert all(p.grad is None for p in reference.module.parameters())
    assert any(p.grad is not None for p in network.module.parameters())


@ROWS
@OBJECTIVE
def test_a_set_that_an_objective_does_not_read_costs_no_forward_pass(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *networks = views(family)
    passes = [0, 0]

    def count(which: int) -> Callable[..., None]:
        def counted(*_: object) -> None:
            passes[which] += 1

        return counted

    for which, network in enumerate(networks):
        network.module.register_forward_pre_hook(count(which))  # before: a pass for hidden states ends half-way
    value = objective(now, before).item()
    assert passes == [len(view.passes) for view in (now, before)]
    # What was not read was not needed either: without those sets the value is the same.
    only_now = View(now.model, {name: now.sets[name] for name in read(now)}, run=Run(level=LEVEL))
    only_before = View(before.model, {name: before.sets[name] for name in read(before)}, gradients=False)
    assert objective(only_now, only_before).item() == value


@ROWS
@OBJECTIVE
def test_an_objective_reads_what_it_says_that_it_needs(plugin: Plugin, family: str):
    objective = objective_of(plugin, family)
    now, before, *_ = views(family)
    objective(now, before)
    asked = read(now) | read(before)
    questions = [question for _, question in (*now.passes, *before.passes)]
    asked |= {"reference"} if read(before) else set()
    asked |= {"hidden"} if any(isinstance(question, HiddenStates) for question in questions) else set()
    asked |= {"experts"} if any(isinstance(question, Routes) for question in questions) else set()
    assert set(plugin.needs) == asked
    assert plugin.intention in ("removal", "suppression", "retention")
    if isinstance(objective, Sum):
        assert {need for _, term in objective.terms() for need in term.needs} == asked
    else:
        assert (objective.needs, objective.intention) == (plugin.needs, plugin.intention)


@OBJECTIVE
def test_the_name_of_an_objective_alone_and_in_a_sum_is_read_back(plugin: Plugin):
    objective = made(plugin, Objective)
    for one in (objective, 0.5 * objective, objective + 2.0 * RetainNLL(), 3.0 * (Ascent() + objective)):
        assert parse(repr(one)).terms() == one.terms()  # a sum of sums is read back flat
        assert repr(parse(repr(one))) == repr(one)
