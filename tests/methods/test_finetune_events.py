"""What a run tells of each step: losses, gradients, learning rates and the sizes of the change."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.adapter import Adapter
from expunge.core.question import Scores
from expunge.errors import UsageRefused
from expunge.events import Checked, Ended, Started, Step
from expunge.methods.finetune import Finetune
from expunge.notation.typed_json import event_from_json, event_to_json
from expunge.train.batches import Batches
from expunge.train.norms import Norms
from tests.methods.runs import REQUEST, apart, numbers, run, tiny

# What a run tells


def test_a_step_tells_all_its_fields_and_they_go_into_a_file():
    _, events = run(steps=2)
    fields = "kind step loss forget retain gradient delta learning_rate size seconds"
    for event in events.of(Step):
        line = event_to_json(event)
        assert list(line) == fields.split()
        assert set(event.gradient) == {"mlp", "attention", "other"}
        assert set(event.delta) == {"frobenius", "spectral"}
        assert event.loss == pytest.approx(event.retain - event.forget, abs=1e-6)  # GradDiff
        assert event_from_json(json.loads(json.dumps(line))) == event
    [start], [end] = events.of(Started), events.of(Ended)
    first, last = events.of(Checked)
    assert (end.kept_forget, end.kept_rise) == (last.forget, last.retain - first.retain)
    assert start.layers == 6
    assert [event.kind for event in events] == ["start", "check", "step", "step", "check", "end"]


def test_the_first_steps_losses_are_those_of_the_examples_that_it_read():
    network = tiny()
    _, events = run(network, steps=1)
    sets = Batches(REQUEST, 4, 5, 0).sets()
    [step] = events.of(Step)
    assert step.forget == pytest.approx(network.ask(Scores(), sets["forget"]).nll().item(), abs=1e-5)
    assert step.retain == pytest.approx(network.ask(Scores(), sets["retain"]).nll().item(), abs=1e-5)
    assert step.size == sum(len(e.tokens) for batch in sets.values() for e in batch)


@pytest.mark.parametrize(
    ("adapter", "moving"),
    [
        (Bounded(), ["mlp"]),
        (LoRA(targets="attention"), ["attention"]),
        (Bounded(targets="all"), ["attention", "mlp"]),
        (Full(), ["attention", "mlp", "other"]),
    ],
    ids=repr,
)
def test_gradients_are_told_by_the_part_of_the_network_that_moves(adapter: Adapter, moving: list[str]):
    _, events = run(adapter=adapter, steps=3)
    for event in events.of(Step):
        assert sorted(kind for kind, size in event.gradient.items() if size > 0) == moving


def test_the_norm_told_is_that_before_clipping():
    free, told = run(steps=4)
    clipped, told_clipped = run(steps=4, clip=1e-9)  # of the size of AdamW's epsilon, so that it shows
    assert told_clipped.of(Step)[0].gradient == told.of(Step)[0].gradient
    assert told.of(Step)[0].gradient["mlp"] > 1e-3
    assert apart(numbers(free), numbers(clipped)) > 1e-3


@pytest.mark.parametrize(
    ("schedule", "by_hand"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_learning_rate_by_hand_with_two_steps_of_warm_up(schedule, by_hand):
    plan = Finetune(learning_rate=0.1, steps=6, warmup=2, schedule=schedule)
    assert [plan.rate(step) for step in range(1, 7)] == pytest.approx([0.1 * share for share in by_hand], abs=1e-12)
    _, events = run(learning_rate=0.1, steps=6, warmup=2, schedule=schedule)
    assert [event.learning_rate for event in events.of(Step)] == [plan.rate(step) for step in range(1, 7)]


def test_a_warm_up_longer_than_the_run_never_gets_there():
    plan = Finetune(learning_rate=0.1, steps=3, warmup=10, schedule="linear")
    assert [plan.rate(step) for step in (1, 2, 3)] == pytest.approx([0.01, 0.02, 0.03])


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(UsageRefused) as refused:
        Finetune(learning_rate=math.nan, steps=0, batch=2, accumulate=3, schedule="step", clip=0.0)
    for name in ("learning_rate", "steps", "accumulate", "schedule", "clip"):
        assert f"{name} must be" in str(refused.value)


# Norms


def deltas(*shapes: tuple[int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {str(k): torch.randn(shape, generator=draw) for k, shape in enumerate(shapes)}


def test_the_frobenius_norm_is_exact_and_the_spectral_norm_within_one_percent():
    changes = deltas((12, 30), (40, 8), (16, 16))
    norms = Norms()
    told = [norms.deltas(iter(changes.items())) for _ in range(40)]
    frobenius = math.sqrt(sum(float(torch.linalg.matrix_norm(d)) ** 2 for d in changes.values()))
    spectral = max(float(torch.linalg.matrix_norm(d, ord=2)) for d in changes.values())
    assert told[0]["frobenius"] == pytest.approx(frobenius, rel=1e-6)
    assert told[-1]["spectral"] == pytest.approx(spectral, rel=0.01)
    assert all(one["spectral"] <= spectral * (1 + 1e-5) for one in told)


def test_the_spectral_norm_of_a_change_that_no_row_sum_shows_is_found():
    """After a LayerNorm inputs sum to 0, and so does every row of the update: a start of ones would see nothing."""
    row = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    told = Norms().deltas(iter({"layer": torch.ones(3, 1) @ row}.items()))
    assert told["spectral"] == pytest.approx(math.sqrt(3 * 10), rel=1e-3)  # of rank one: sqrt(3) * |row|


def test_the_spectral_norm_follows_a_run():
    network, method = tiny(), Bounded(rank=4)
    adapted, events = run(network, adapter=method, steps=12)
    exact = max(float(torch.linalg.matrix_norm(d, ord=2)) for _, d in method.deltas(adapted, network))
    square = sum(float(d.square().sum()) for _, d in method.deltas(adapted, network))
    last = events.of(Step)[-1].delta
    assert last["spectral"] == pytest.approx(exact, rel=0.01)
    assert last["frobenius"] == pytest.approx(math.sqrt(square), rel=1e-6)


def test_nothing_has_no_norm():
    assert Norms().deltas(iter({"a": torch.zeros(3, 4)}.items())) == {"frobenius": 0.0, "spectral": 0.0}


def test_gradient_norms_are_sorted_by_part_and_a_parameter_without_one_counts_as_zero():
    moving = {
        "mlp.a": SimpleNamespace(grad=torch.tensor([3.0, 4.0])),
        "mlp.b": SimpleNamespace(grad=torch.tensor([12.0])),
        "q": SimpleNamespace(grad=None),
    }
    told = Norms.gradients(moving, lambda name: "mlp" if name.startswith("mlp") else "attention")
    assert told == {"mlp": 13.0, "attention": 0.0, "other": 0.0}
