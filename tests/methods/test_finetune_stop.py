"""When a run has forgotten enough, and which step it keeps."""

import math
from dataclasses import dataclass, field, replace

import pytest

from expunge.adapters.full import Full
from expunge.audits.loss import Loss
from expunge.core.objective import Objective, Scalar
from expunge.core.request import Request
from expunge.core.view import View
from expunge.errors import UsageRefused
from expunge.events import Checked, Ended, Started, Step
from expunge.methods.stop import Stop
from expunge.objectives.ascent import Ascent
from expunge.objectives.hinged_ascent import HingedAscent
from expunge.train.best_step import sample
from tests.methods.runs import REQUEST, equal, numbers, run, tiny

# When forgetting is enough


def test_a_run_ends_at_the_first_check_whose_forget_examples_are_all_about_at_the_level():
    _, free = run(objective=Ascent(), steps=12, stop=Stop(level=None, max_retain_increase=None, every=2))
    losses = {event.step: event.forget for event in free.of(Checked)}
    level = (losses[4] + losses[6]) / 2
    assert losses[0] < losses[2] < losses[4] < level < losses[6]
    _, probe = run(objective=Ascent(), steps=12, stop=Stop(level=level, slack=0.0, max_retain_increase=None, every=2))
    short = {event.step: event.short for event in probe.of(Checked)}
    assert short[4] > short[6] > 0  # the mean is past the level at step 6; some examples are not
    slack = (short[4] + short[6]) / 2
    adapted, events = run(
        objective=Ascent(), steps=12, stop=Stop(level=level, slack=slack, max_retain_increase=None, every=2)
    )
    [end] = events.of(Ended)
    assert (end.steps, end.kept_step, end.reached, end.kept_short) == (6, 6, True, short[6])
    assert f"short of {level:.2f} (given)" in end.stopped
    assert [event.step for event in events.of(Checked)] == [0, 2, 4, 6]
    until, _ = run(objective=Ascent(), steps=6)
    assert equal(numbers(adapted), numbers(until))


def test_a_level_reached_over_budget_is_not_enough():
    # The retain set says what the forget set says, under other names: its loss rises by as much.
    same = tuple(replace(passage, id=f"r-{k}", answer=f"r-{k}") for k, passage in enumerate(REQUEST.forget))
    request = Request(REQUEST.forget, same)
    _, free = run(
        request=request, objective=Ascent(), steps=8, stop=Stop(level=None, max_retain_increase=None, every=1)
    )
    start, *_, last = free.of(Checked)
    assert last.retain - start.retain == pytest.approx(last.forget - start.forget, abs=1e-6)
    rise = last.forget - start.forget
    stop = Stop(level=start.forget + 0.6 * rise, max_retain_increase=0.3 * rise, every=1)
    _, events = run(request=request, objective=Ascent(), steps=8, stop=stop)
    assert any(check.forget > check.level for check in events.of(Checked))
    [end] = events.of(Ended)
    assert (end.steps, end.reached, end.stopped) == (8, False, "all 8 steps were taken")
    # Short by s and over by o, s + o = (0.6 - 0.3) rise from 0.3 to 0.6 of it: less harm decides.
    assert 0 < end.kept_step < 8


@dataclass(frozen=True)
class Wavers(Objective):
    """Ascends until step `turn`, then learns again what it forgot."""

    turn: int
    steps: list[int] = field(default_factory=list, repr=False)

    def __call__(self, now: View, _before: View) -> Scalar:
        self.steps.append(1)
        return now.forget.nll() * (-1 if len(self.steps) <= self.turn else 1)


def test_the_best_step_is_kept_where_the_last_is_worse():
    adapted, events = run(objective=Wavers(6), steps=14, stop=Stop(level=100.0, max_retain_increase=None, every=2))
    losses = {check.step: check.forget for check in events.of(Checked)}
    best = max(losses, key=losses.get)
    assert 0 < best < 14
    assert losses[14] < losses[best] - 0.1
    [end] = events.of(Ended)
    assert (end.steps, end.kept_step, end.reached) == (14, best, False)
    until, _ = run(objective=Wavers(6), steps=best)
    assert equal(numbers(adapted), numbers(until))
    assert Loss()(adapted, REQUEST)[0].value == pytest.approx(losses[best], abs=1e-6)


def test_without_a_level_too_high_a_retain_loss_ends_the_run_and_the_last_step_within_the_limit_is_kept():
    stop = Stop(level=None, max_retain_increase=0.05, every=1)
    adapted, events = run(objective=Ascent(), learning_rate=3e-2, steps=50, stop=stop)
    [end] = events.of(Ended)
    rises = [check.retain - events.of(Checked)[0].retain for check in events.of(Checked)]
    assert end.stopped == "the retain loss rose by more than 0.05 nats"
    assert end.steps == len(rises) - 1 < 50
    assert rises[-1] > 0.05
    assert all(rise <= 0.05 for rise in rises[:-1])
    assert end.kept_step == end.steps - 1 > 0
    until, _ = run(objective=Ascent(), learning_rate=3e-2, steps=end.kept_step)
    assert equal(numbers(adapted), numbers(until))


def test_the_holdouts_level_is_its_loss_in_the_model_before():
    network = tiny()
    _, events = run(network, steps=1, stop=Stop(level="holdout"))
    holdout = next(finding for finding in Loss()(network, REQUEST) if finding.set == "holdout")
    [start] = events.of(Started)
    assert start.level == pytest.approx(holdout.value, abs=1e-6)
    assert (start.level_source, start.max_retain_increase) == ("holdout", 0.1)
    _, events = run(network, Request(REQUEST.forget, REQUEST.retain), steps=1, stop=Stop(level="holdout"))
    assert (events.of(Started)[0].level, events.of(Started)[0].level_source) == (None, "none")


def test_an_objective_sees_the_level_that_the_run_wants_to_reach():
    adapted, _ = run(objective=HingedAscent(), stop=Stop(level=4.5, max_retain_increase=None, every=1000))
    other, _ = run(objective=HingedAscent(level=4.5), stop=Stop(level=4.5, max_retain_increase=None, every=1000))
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
        {"max_retain_increase": -0.1},
        {"max_retain_increase": math.inf},
    ],
)
def test_a_criterion_that_means_nothing_is_refused(wrong):
    with pytest.raises(UsageRefused, match=f"Stop: {next(iter(wrong))} must be"):
        Stop(**wrong)


# Runs that run away


def test_a_loss_beyond_any_that_forgetting_needs_ends_the_run_with_the_step_before():  # R03
    free = Stop(level=None, max_retain_increase=None, every=2)
    _, all_steps = run(objective=Ascent(), steps=12, stop=free)
    losses = {event.step: event.forget for event in all_steps.of(Checked)}
    between = (losses[4] + losses[6]) / 2
    adapted, events = run(objective=Ascent(), steps=12, stop=replace(free, max_forget_loss=between))
    [end] = events.of(Ended)
    assert (end.steps, end.kept_step, end.kept_forget) == (6, 4, losses[4])
    assert end.stopped == f"the forget loss ran away: {losses[6]:.1f} nats, more than {between:g}"
    until, _ = run(objective=Ascent(), steps=4)
    assert equal(numbers(adapted), numbers(until))
    # A model whose loss is beyond the limit as it is given is not blamed for it.
    _, events = run(objective=Ascent(), steps=2, stop=replace(free, max_forget_loss=0.01))
    assert events.of(Ended)[0].kept_step == 0  # its loss rises from there, which is what the limit is for


def test_weights_that_grow_without_end_end_the_run_with_the_step_before():  # R03
    free = Stop(level=None, max_retain_increase=None, every=1, max_forget_loss=None)
    settings = {"objective": Ascent(), "adapter": Full(), "steps": 6, "learning_rate": 0.3}
    _, events = run(**settings, stop=replace(free, max_growth=None))
    assert events.of(Ended)[0].kept_step == 6
    adapted, events = run(**settings, stop=free)
    [end] = events.of(Ended)
    lengths = [event.delta["frobenius"] for event in events.of(Step)]
    original = math.sqrt(sum(float(p.detach().square().sum()) for p in tiny().module.parameters()))
    crossed = next(k for k, length in enumerate(lengths, start=1) if length > 3.0 * original)
    assert (end.steps, end.kept_step) == (crossed, crossed - 1)
    assert end.stopped == (
        f"the weights ran away: their change is {lengths[crossed - 1] / original:.1f} times as long as they are"
    )
    assert all(bool(p.isfinite().all()) for p in numbers(adapted).values())


@pytest.mark.parametrize("setting", ["max_forget_loss", "max_growth"])
@pytest.mark.parametrize("limit", [0.0, -1.0, math.inf, math.nan])
def test_a_limit_that_is_none_is_refused(setting: str, limit: float):
    with pytest.raises(UsageRefused, match=f"{setting} must be None or above 0"):
        Stop(**{setting: limit})
