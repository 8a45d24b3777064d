"""The training loop: the same whatever its batches are cut into, quiet to the world, and it ends where it should."""

import json
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.audits.loss import Loss
from expunge.core.adapter import Adapter
from expunge.core.errors import RunFailed, UsageRefused
from expunge.core.model import Network, View
from expunge.core.objective import Objective, Scalar
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.models.language import LanguageModel
from expunge.objectives.ascent import Ascent
from expunge.objectives.grad_diff import GradDiff
from expunge.objectives.hinged_ascent import HingedAscent
from expunge.objectives.npo import NPO
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.train.draw import Draw
from expunge.train.finetune import Finetune
from expunge.train.keeper import sample
from expunge.train.norms import Norms
from expunge.train.stop import Stop

torch.set_num_threads(1)

V = 40
FREE = Stop(level=None, budget=None, every=1000)
"""Takes every step and keeps the last."""


def tiny(dtype: torch.dtype = torch.float32) -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    module = LlamaForCausalLM(config).eval().to(dtype)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return LanguageModel.of(module, None)


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    """Examples of 2 to 8 labelled tokens."""
    draw = torch.Generator().manual_seed(seed)

    def passage(k: int) -> Passage:
        length = 4 + (3 * k) % 7
        return Passage(
            f"{name}-{k}", tuple(torch.randint(1, V, (length,), generator=draw).tolist()), 2, "", f"{name}-{k}"
        )

    return tuple(passage(k) for k in range(count))


REQUEST = Request(forget=passages("f", 7, 1), retain=passages("r", 9, 2), holdout=passages("h", 5, 3))


class Events(list):
    """What a run tells, by kind."""

    def __call__(self, event: dict) -> None:
        self.append(event)

    def of(self, kind: str) -> list[dict]:
        return [event for event in self if event["kind"] == kind]


def run(network: Network | None = None, request: Request = REQUEST, **options) -> tuple[Network, Events]:
    events = Events()
    settings = {"objective": GradDiff(), "adapter": Bounded(rank=4), "learning_rate": 1e-2, "stop": FREE}
    plan = Finetune(**{**settings, "steps": 5, "batch": 4, "retain_batch": 5, **options})
    return plan(network or tiny(), request, events), events


def numbers(network: Network) -> dict[str, torch.Tensor]:
    """The parameters that moved."""
    return {name: parameter.detach().clone() for name, parameter in network.trainable().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# What a step is cut into


@pytest.mark.parametrize(
    "objective",
    [GradDiff(), NPO(beta=0.3) + RetainKL(), HingedAscent(level=4.0) + 0.5 * RetainNLL()],
    ids=repr,
)
@pytest.mark.parametrize("accumulate", [2, 3, 4])
def test_a_step_read_in_parts_is_the_step_read_at_once(objective, accumulate):
    whole, at_once = run(tiny(torch.float64), objective=objective)
    parts, in_parts = run(tiny(torch.float64), objective=objective, accumulate=accumulate)
    assert apart(numbers(whole), numbers(parts)) < 1e-6
    for one, other in zip(at_once.of("step"), in_parts.of("step"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
        assert one["forget"] == pytest.approx(other["forget"], abs=1e-6)
        assert one["size"] == other["size"]


def test_a_step_read_in_parts_is_the_step_read_at_once_in_float32_too():
    whole, _ = run(steps=3)
    parts, _ = run(steps=3, accumulate=4)
    assert apart(numbers(whole), numbers(parts)) < 1e-5  # three steps of 1e-2, divided by sqrt of squared gradients


@pytest.mark.parametrize(("forget", "retain"), [(7, 2), (3, 9), (1, 1)])
def test_more_parts_than_a_set_has_examples_change_nothing(forget, retain):
    request = Request(forget=REQUEST.forget[:forget], retain=REQUEST.retain[:retain])
    whole, _ = run(tiny(torch.float64), request)
    parts, _ = run(tiny(torch.float64), request, accumulate=4)
    assert apart(numbers(whole), numbers(parts)) < 1e-6


# What else a run may not depend on


def test_checks_leave_the_trajectory_as_it_is_to_the_bit():
    checked, with_checks = run(steps=8, stop=Stop(level=None, budget=None, every=1))
    plain, without = run(steps=8)
    assert len(with_checks.of("check")) == 9
    assert len(without.of("check")) == 2
    assert [e["loss"] for e in with_checks.of("step")] == [e["loss"] for e in without.of("step")]
    assert equal(numbers(checked), numbers(plain))


@pytest.mark.parametrize("adapter", [Bounded(), LoRA(), Full()], ids=repr)
def test_two_runs_with_one_seed_are_equal_to_the_bit_and_with_another_they_are_not(adapter):
    torch.manual_seed(11)
    one, _ = run(adapter=adapter, seed=3)
    torch.manual_seed(12)  # whatever the world's dice have shown
    same, _ = run(adapter=adapter, seed=3)
    other, _ = run(adapter=adapter, seed=4)
    assert equal(numbers(one), numbers(same))
    assert not equal(numbers(one), numbers(other))


def test_a_run_leaves_the_worlds_dice_alone():
    torch.manual_seed(5)
    network = tiny()
    was = torch.get_rng_state()
    run(network)
    assert torch.equal(torch.get_rng_state(), was)


def test_the_network_given_is_left_as_it_was():
    network = tiny()
    was = {name: p.clone() for name, p in network.module.named_parameters()}
    run(network, adapter=Full())
    assert all(torch.equal(p, was[name]) for name, p in network.module.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in network.module.parameters())


# What stops a run that goes wrong


@dataclass(frozen=True)
class Spoils(Objective):
    """Adds nothing, until step `at`: then a loss that is NaN, or one that is finite with an infinite gradient."""

    at: int
    how: str
    steps: list[int] = field(default_factory=list, repr=False)

    def __call__(self, now: View, _before: View) -> Scalar:
        self.steps.append(1)
        value = now.forget.nll()
        if len(self.steps) < self.at:
            return 0.0 * value
        return value * math.nan if self.how == "nan" else (value - value.detach()).sqrt()  # the slope of a root at 0


@pytest.mark.parametrize("how", ["nan", "steep"])
def test_a_step_that_is_not_finite_is_never_applied_and_is_named(how):
    events = Events()
    plan = Finetune(
        objective=GradDiff() + Spoils(at=4, how=how),
        adapter=Bounded(rank=4),
        learning_rate=1e-2,
        steps=9,
        batch=2,
        retain_batch=2,
        stop=FREE,
    )
    with pytest.raises(RunFailed) as caught:
        plan(tiny(), REQUEST, events)
    error = caught.value
    assert error.code == 5
    assert "step 4: " in str(error)
    assert ("the term Spoils(at=4, how='nan')" if how == "nan" else "a gradient") in str(error)
    # The records of the step: the fourth deal of two from either set.
    draw = Draw(REQUEST, 2, 2, 0)
    dealt = [draw.sets() for _ in range(4)][-1]
    for name, batch in dealt.items():
        assert f"{name}: {batch[0].id}, {batch[1].id}" in str(error)
    good, _ = run(objective=GradDiff() + Spoils(at=99, how=how), steps=3, batch=2, retain_batch=2)
    assert equal(numbers(error.last_good), numbers(good))
    assert [event["step"] for event in events.of("step")] == [1, 2, 3]
    assert not events.of("end")


class Breaks(Objective):
    """Its gradient is finite and carries the weights so far that the next answer is not."""

    def __call__(self, now: View, _before: View) -> Scalar:
        return -now.forget.nll()


@pytest.mark.parametrize("level", [None, 4.0])
def test_a_check_that_is_not_finite_is_never_taken_for_forgetting(level):
    with pytest.raises(RunFailed) as caught:
        run(adapter=LoRA(), objective=Breaks(), learning_rate=1e30, steps=1, stop=Stop(level=level, every=1))
    assert "step 1" in str(caught.value)
    # The state before it is the last good one: the start, where the update is zero.
    deltas = LoRA().deltas(caught.value.last_good, tiny())
    assert all(not delta.any() for _, delta in deltas)


def test_a_model_whose_answers_are_not_finite_is_told_before_any_step():
    network = tiny()
    with torch.no_grad():
        network.module.lm_head.weight[0, 0] = math.nan
    for stop, said in ((Stop(), "loss on the holdout set is NaN"), (FREE, "step 0: the loss of the forget set is NaN")):
        with pytest.raises(RunFailed, match=said) as caught:
            run(network, stop=stop)
        assert caught.value.last_good is None


# When forgetting is enough


def test_a_run_ends_at_the_first_check_whose_forget_examples_are_all_about_at_the_level():
    _, free = run(objective=Ascent(), steps=12, stop=Stop(level=None, budget=None, every=2))
    losses = {event["step"]: event["forget"] for event in free.of("check")}
    level = (losses[4] + losses[6]) / 2
    assert losses[0] < losses[2] < losses[4] < level < losses[6]
    _, probe = run(objective=Ascent(), steps=12, stop=Stop(level=level, slack=0.0, budget=None, every=2))
    short = {event["step"]: event["short"] for event in probe.of("check")}
    assert short[4] > short[6] > 0  # the mean is past the level at step 6; some examples are not
    slack = (short[4] + short[6]) / 2
    adapted, events = run(objective=Ascent(), steps=12, stop=Stop(level=level, slack=slack, budget=None, every=2))
    [end] = events.of("end")
    assert (end["steps"], end["kept_step"], end["reached"], end["kept_short"]) == (6, 6, True, short[6])
    assert f"short of {level:.2f} (given)" in end["stopped"]
    assert [event["step"] for event in events.of("check")] == [0, 2, 4, 6]
    until, _ = run(objective=Ascent(), steps=6)
    assert equal(numbers(adapted), numbers(until))


def test_a_level_reached_over_budget_is_not_enough():
    # The retain set says what the forget set says, under other names: its loss rises by as much.
    same = tuple(replace(passage, id=f"r-{k}", answer=f"r-{k}") for k, passage in enumerate(REQUEST.forget))
    request = Request(REQUEST.forget, same)
    _, free = run(request=request, objective=Ascent(), steps=8, stop=Stop(level=None, budget=None, every=1))
    start, *_, last = free.of("check")
    assert last["retain"] - start["retain"] == pytest.approx(last["forget"] - start["forget"], abs=1e-6)
    rise = last["forget"] - start["forget"]
    stop = Stop(level=start["forget"] + 0.6 * rise, budget=0.3 * rise, every=1)
    _, events = run(request=request, objective=Ascent(), steps=8, stop=stop)
    assert any(check["forget"] > check["level"] for check in events.of("check"))
    [end] = events.of("end")
    assert (end["steps"], end["reached"], end["stopped"]) == (8, False, "all 8 steps were taken")
    # Short by s and over by o, s + o = (0.6 - 0.3) rise from 0.3 to 0.6 of it: less harm decides.
    assert 0 < end["kept_step"] < 8


@dataclass(frozen=True)
class Wavers(Objective):
    """Ascends until step `turn`, then learns again what it forgot."""

    turn: int
    steps: list[int] = field(default_factory=list, repr=False)

    def __call__(self, now: View, _before: View) -> Scalar:
        self.steps.append(1)
        return now.forget.nll() * (-1 if len(self.steps) <= self.turn else 1)


def test_the_best_step_is_kept_where_the_last_is_worse():
    adapted, events = run(objective=Wavers(6), steps=14, stop=Stop(level=100.0, budget=None, every=2))
    losses = {check["step"]: check["forget"] for check in events.of("check")}
    best = max(losses, key=losses.get)
    assert 0 < best < 14
    assert losses[14] < losses[best] - 0.1
    [end] = events.of("end")
    assert (end["steps"], end["kept_step"], end["reached"]) == (14, best, False)
    until, _ = run(objective=Wavers(6), steps=best)
    assert equal(numbers(adapted), numbers(until))
    assert Loss()(adapted, REQUEST)[0].value == pytest.approx(losses[best], abs=1e-6)


def test_without_a_level_a_spent_budget_ends_the_run_and_the_last_step_within_it_is_kept():
    stop = Stop(level=None, budget=0.05, every=1)
    adapted, events = run(objective=Ascent(), learning_rate=3e-2, steps=50, stop=stop)
    [end] = events.of("end")
    rises = [check["retain"] - events.of("check")[0]["retain"] for check in events.of("check")]
    assert end["stopped"] == "the retain budget of 0.05 nats was spent"
    assert end["steps"] == len(rises) - 1 < 50
    assert rises[-1] > 0.05
    assert all(rise <= 0.05 for rise in rises[:-1])
    assert end["kept_step"] == end["steps"] - 1 > 0
    until, _ = run(objective=Ascent(), learning_rate=3e-2, steps=end["kept_step"])
    assert equal(numbers(adapted), numbers(until))


def test_the_holdouts_level_is_its_loss_in_the_model_before():
    network = tiny()
    _, events = run(network, steps=1, stop=Stop(level="holdout"))
    holdout = next(finding for finding in Loss()(network, REQUEST) if finding.set == "holdout")
    [start] = events.of("start")
    assert start["level"] == pytest.approx(holdout.value, abs=1e-6)
    assert (start["level_source"], start["budget"]) == ("holdout", 0.1)
    _, events = run(network, Request(REQUEST.forget, REQUEST.retain), steps=1, stop=Stop(level="holdout"))
    assert (events.of("start")[0]["level"], events.of("start")[0]["level_source"]) == (None, "none")


def test_an_objective_sees_the_level_that_the_run_wants_to_reach():
    adapted, _ = run(objective=HingedAscent(), stop=Stop(level=4.5, budget=None, every=1000))
    other, _ = run(objective=HingedAscent(level=4.5), stop=Stop(level=4.5, budget=None, every=1000))
    assert equal(numbers(adapted), numbers(other))


def test_a_check_reads_at_most_64_examples_evenly_spread():
    assert sample(range(64)) == range(64)
    assert list(sample(range(65))) == list(range(0, 65, 2))
    assert [len(sample(range(n))) for n in (128, 129, 1000)] == [64, 43, 63]


@pytest.mark.parametrize(
    "wrong",
    [
        {"level": "reference"},
        {"level": math.nan},
        {"slack": -1.0},
        {"every": 0},
        {"budget": -0.1},
        {"budget": math.inf},
    ],
)
def test_a_criterion_that_means_nothing_is_refused(wrong):
    with pytest.raises(UsageRefused, match=f"Stop: {next(iter(wrong))} must be"):
        Stop(**wrong)


# What a run tells


def test_a_step_tells_all_its_fields_and_they_go_into_a_file():
    _, events = run(steps=2)
    fields = "kind step loss forget retain gradient delta learning_rate size seconds"
    for event in events.of("step"):
        assert list(event) == fields.split()
        assert set(event["gradient"]) == {"mlp", "attention", "other"}
        assert set(event["delta"]) == {"frobenius", "spectral"}
        assert event["loss"] == pytest.approx(event["retain"] - event["forget"], abs=1e-6)  # GradDiff
        assert json.loads(json.dumps(event)) == event
    [start], [end] = events.of("start"), events.of("end")
    aims = {"level", "slack", "level_source", "budget"}
    assert set(start) == {"kind", "layers", "trainable", "parameters", "steps"} | aims
    assert set(end) == {"kind", "stopped", "kept_step", "steps", "reached", "kept_forget", "kept_short", "kept_rise"}
    first, last = events.of("check")
    assert (end["kept_forget"], end["kept_rise"]) == (last["forget"], last["retain"] - first["retain"])
    assert start["layers"] == 6
    assert [event["kind"] for event in events] == ["start", "check", "step", "step", "check", "end"]


def test_the_first_steps_losses_are_those_of_the_examples_that_it_read():
    network = tiny()
    _, events = run(network, steps=1)
    sets = Draw(REQUEST, 4, 5, 0).sets()
    [step] = events.of("step")
    assert step["forget"] == pytest.approx(network.predict(sets["forget"]).nll().item(), abs=1e-5)
    assert step["retain"] == pytest.approx(network.predict(sets["retain"]).nll().item(), abs=1e-5)
    assert step["size"] == sum(len(e.tokens) for batch in sets.values() for e in batch)


@pytest.mark.parametrize(
    ("adapter", "moving"),
    [
        (Bounded(), {"mlp"}),
        (LoRA(targets="attention"), {"attention"}),
        (Bounded(targets="all"), {"mlp", "attention"}),
        (Full(), {"mlp", "attention", "other"}),
    ],
    ids=repr,
)
def test_gradients_are_told_by_the_part_of_the_network_that_moves(adapter: Adapter, moving: set[str]):
    _, events = run(adapter=adapter, steps=3)
    for event in events.of("step"):
        assert {kind for kind, size in event["gradient"].items() if size > 0} == moving


def test_the_norm_told_is_that_before_clipping():
    free, told = run(steps=4)
    clipped, told_clipped = run(steps=4, clip=1e-9)  # of the size of AdamW's epsilon, so that it shows
    assert told_clipped.of("step")[0]["gradient"] == told.of("step")[0]["gradient"]
    assert told.of("step")[0]["gradient"]["mlp"] > 1e-3
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
    assert [event["learning_rate"] for event in events.of("step")] == [plan.rate(step) for step in range(1, 7)]


def test_a_warm_up_longer_than_the_run_never_gets_there():
    plan = Finetune(learning_rate=0.1, steps=3, warmup=10, schedule="linear")
    assert [plan.rate(step) for step in (1, 2, 3)] == pytest.approx([0.01, 0.02, 0.03])


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(UsageRefused) as refused:
        Finetune(learning_rate=math.nan, steps=0, batch=2, accumulate=3, schedule="step", clip=0.0)
    for name in ("learning_rate", "steps", "accumulate", "schedule", "clip"):
        assert f"{name} must be" in str(refused.value)


# Which examples a step reads


@pytest.mark.parametrize(("batch", "retain_batch"), [(1, 1), (3, 4), (7, 9), (100, 100)])
def test_every_example_is_dealt_once_before_any_twice_and_no_tail_is_dropped(batch, retain_batch):
    draw = Draw(REQUEST, batch, retain_batch, seed=0)
    steps = [draw.sets() for _ in range(30)]
    for name, examples, wanted in (("forget", REQUEST.forget, batch), ("retain", REQUEST.retain, retain_batch)):
        assert {len(step[name]) for step in steps} == {min(wanted, len(examples))}
        dealt = [example.id for step in steps for example in step[name]]
        for start in range(0, len(dealt), len(examples)):
            count = Counter(dealt[start : start + len(examples)])
            assert set(count.values()) == {1}
        first, second = dealt[: len(examples)], dealt[len(examples) : 2 * len(examples)]
        assert first != second or len(examples) == 1
    assert "stand_in" not in steps[0]
    assert "holdout" not in steps[0]


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
    last = events.of("step")[-1]["delta"]
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
