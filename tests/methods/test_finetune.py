"""The training loop: the same whatever its batches are cut into, quiet to the world, and it stops where it breaks."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.adapters.lora import LoRA
from expunge.core.objective import Objective, Scalar
from expunge.core.request import Request
from expunge.core.view import View
from expunge.errors import RunFailed
from expunge.events import Checked, Ended, Step
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.objectives.grad_diff import GradDiff
from expunge.objectives.hinged_ascent import HingedAscent
from expunge.objectives.npo import NPO
from expunge.objectives.retain_kl import RetainKL
from expunge.objectives.retain_nll import RetainNLL
from expunge.train.batches import Batches
from tests.methods.runs import FREE, REQUEST, Events, apart, equal, numbers, run, tiny

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
    for one, other in zip(at_once.of(Step), in_parts.of(Step), strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-6)
        assert one.forget == pytest.approx(other.forget, abs=1e-6)
        assert one.size == other.size


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
    checked, with_checks = run(steps=8, stop=Stop(level=None, max_retain_increase=None, every=1))
    plain, without = run(steps=8)
    assert len(with_checks.of(Checked)) == 9
    assert len(without.of(Checked)) == 2
    assert [e.loss for e in with_checks.of(Step)] == [e.loss for e in without.of(Step)]
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
    draw = Batches(REQUEST, 2, 2, 0)
    dealt = [draw.sets() for _ in range(4)][-1]
    for name, batch in dealt.items():
        assert f"{name}: {batch[0].id}, {batch[1].id}" in str(error)
    good, _ = run(objective=GradDiff() + Spoils(at=99, how=how), steps=3, batch=2, retain_batch=2)
    assert equal(numbers(error.last_good.inner), numbers(good))
    assert [event.step for event in events.of(Step)] == [1, 2, 3]
    assert not events.of(Ended)


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
    deltas = caught.value.last_good.changes()
    assert all(not delta.any() for _, delta in deltas)


def test_a_model_whose_answers_are_not_finite_is_told_before_any_step():
    network = tiny()
    with torch.no_grad():
        network.module.lm_head.weight[0, 0] = math.nan
    for stop, said in ((Stop(), "loss on the holdout set is NaN"), (FREE, "step 0: the loss of the forget set is NaN")):
        with pytest.raises(RunFailed, match=said) as caught:
            run(network, stop=stop)
        assert caught.value.last_good is None


# Which examples a step reads


@pytest.mark.parametrize(("batch", "retain_batch"), [(1, 1), (3, 4), (7, 9), (100, 100)])
def test_every_example_is_dealt_once_before_any_twice_and_no_tail_is_dropped(batch, retain_batch):
    draw = Batches(REQUEST, batch, retain_batch, seed=0)
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
