"""Objectives of hidden states, on a small Llama and a small ViT in float64."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from expunge.core.model import Network
from expunge.core.objective import Objective
from expunge.core.question import HiddenStates
from expunge.core.view import View
from expunge.data.images import Picture
from expunge.data.text import Passage
from expunge.internals.blocks import blocks
from expunge.models.language import LanguageModel
from expunge.models.vision import ImageClassifier
from expunge.objectives._directions import positive_unit
from expunge.objectives.adaptive_rmu import AdaptiveRMU
from expunge.objectives.retain_hidden import RetainHidden
from expunge.objectives.rmu import RMU

torch.set_num_threads(1)

V = 30


def language(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4, eos_token_id=0
    )
    module = LlamaForCausalLM(config).eval().double()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, None)


def vit(seed: int = 0) -> ImageClassifier:
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=4, intermediate_size=24, num_labels=3)
    return ImageClassifier.of(
        ViTForImageClassification(ViTConfig(**shape, image_size=8, patch_size=4)).eval().double(), None
    )


def texts(seed: int) -> list[Passage]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Passage(f"{k}", tuple(torch.randint(1, V, (3 + 2 * k,), generator=draw).tolist()), 2, "", "") for k in (0, 1, 2)
    ]


def images(seed: int) -> list[Picture]:
    draw = torch.Generator().manual_seed(seed)
    return [Picture(f"{k}", torch.randn(3, 8, 8, generator=draw), k, "") for k in (0, 1, 2)]


FAMILY = pytest.mark.parametrize(("make", "batch"), [(language, texts), (vit, images)], ids=["llama", "vit"])


def views(make, batch) -> tuple[View, View]:
    sets = {"forget": batch(0), "retain": batch(1)}
    return View(make(1), sets), View(make(0), sets, gradients=False)


def test_the_direction_has_length_1_no_negative_entry_and_depends_on_the_seed_alone():
    like = torch.zeros(3, 500, dtype=torch.float64)
    u = positive_unit(like, 0)
    assert u.norm().item() == pytest.approx(1, abs=1e-12)
    assert (u >= 0).all()
    assert torch.equal(u, positive_unit(torch.ones(1, 500, dtype=torch.float64), 0))
    # Two of them: mean of products 1/4 over mean of squares 1/3, so a cosine of about 3/4.
    assert (u @ positive_unit(like, 1)).item() == pytest.approx(0.75, abs=0.05)


@FAMILY
def test_rmu_is_the_squared_distance_to_one_point_averaged_over_rows(make, batch):
    now, before = views(make, batch)
    felt = now.hidden_states("forget", 2)
    point = 6.5 * positive_unit(felt.states, 0)
    distances = [sum((h - c) ** 2 for h, c in zip(row, point.tolist(), strict=True)) for row in felt.states.tolist()]
    assert len(distances) == sum(example.rows for example in batch(0))
    assert RMU(layer=2)(now, before).item() == pytest.approx(sum(distances) / len(distances), rel=1e-12)


@FAMILY
def test_adaptive_rmu_scales_by_the_length_of_the_rows_own_state_before(make, batch):
    now, before = views(make, batch)
    felt, was = now.hidden_states("forget", 1).states.detach(), before.hidden_states("forget", 1).states
    u = positive_unit(felt, 3)
    by_hand = [
        float((h - 5 * math.sqrt(float((w * w).sum())) * u).square().sum()) for h, w in zip(felt, was, strict=True)
    ]
    got = AdaptiveRMU(layer=1, seed=3)(now, before).item()
    assert got == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-12)


@FAMILY
def test_states_that_are_on_their_point_cost_nothing_and_are_not_pulled(make, batch):
    now, before = views(make, batch)
    felt = now.hidden_states("forget", 1)
    there = torch.full_like(felt.states, 0.0) + 4.0 * positive_unit(felt.states, 0)
    now.replies["forget", HiddenStates(1)] = replace(felt, states=there.requires_grad_())
    loss = RMU(strength=4.0, layer=1)(now, before)
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert torch.autograd.grad(loss, there)[0].abs().max() < 1e-12


@FAMILY
def test_retain_hidden_is_zero_with_zero_gradient_where_nothing_changed_and_worked_elsewhere(make, batch):
    now, before = views(make, batch)
    same = View(make(0), now.sets)
    loss = RetainHidden(layer=2)(same, before)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in same.model.module.parameters())
    gap = now.hidden_states("retain", 2).states.detach() - before.hidden_states("retain", 2).states
    assert RetainHidden(layer=2)(now, before).item() == pytest.approx(float((gap**2).sum()) / len(gap), rel=1e-12)


@FAMILY
@pytest.mark.parametrize(
    "objective", [RMU(layer=1), AdaptiveRMU(layer=1), RMU(layer=1) + 1200.0 * RetainHidden(layer=1)], ids=repr
)
def test_nothing_above_the_layer_gets_a_gradient(make, batch, objective: Objective):
    now, before = views(make, batch)
    objective(now, before).backward()
    network: Network = now.model
    parts = list(blocks(network.module).items())
    up_to = {name for name, _ in parts[:2]}
    moved = {name for name, p in network.module.named_parameters() if p.grad is not None and p.grad.any()}
    for name in moved:
        block = next((b for b, _ in parts if name.startswith(f"{b}.")), None)
        assert block in up_to or (block is None and "embed" in name), name
    assert {b for b in up_to if any(name.startswith(f"{b}.") for name in moved)} == up_to
    assert all(p.grad is None for p in before.model.module.parameters())


def test_a_step_down_lengthens_the_shadow_on_the_direction():
    now, before = views(language, texts)
    weights = [p for p in now.model.module.parameters() if p.requires_grad]
    loss = RMU(strength=60.0, layer=1)(now, before)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    felt = now.hidden_states("forget", 1).states.detach()
    shadow = (felt @ positive_unit(felt, 0)).mean()
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                weight -= 1e-4 * gradient
    after = View(now.model, now.sets).hidden_states("forget", 1).states
    assert (after @ positive_unit(after, 0)).mean() > shadow + 0.1
