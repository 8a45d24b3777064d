"""The loss of a class that was never learnt: levels by hand, the laws of drawing, and when it is `TokenLevels`."""

import math
from dataclasses import replace

import pytest
import torch

from expunge.adapters.full import Full
from expunge.audits.accuracy import Accuracy
from expunge.core.question import LogProbabilities, Scores
from expunge.core.request import Request
from expunge.core.view import Run, View
from expunge.errors import UsageRefused
from expunge.notation.parse import parse
from expunge.objectives import absent_class
from expunge.objectives.absent_class import AbsentClass
from expunge.objectives.token_levels import TokenLevels
from expunge.report.ideals import with_ideals
from tests.families import family_of, moved, picture_request


def absent(count: int = 12) -> Request:
    """Images of which all to be forgotten are of class 3, and no other is."""
    made = picture_request(count)
    labelled = {name: tuple(replace(e, label=3) for e in made.forget) for name in ("forget",)}
    others = tuple(replace(e, label=e.label % 3) for e in made.retain)
    return Request(labelled["forget"], others)


def views(request: Request, step: int = 1, unlikely: float = 10.0) -> tuple[View, View]:
    """Of a network that finds class 3 less likely by so many nats than its random weights do, and of another."""
    before, _ = family_of("resnet")
    with torch.no_grad():
        before.module.classifier[-1].bias[3] -= unlikely
    now = moved(Full().insert(before, request))
    run = Run(level=4.0, step=step, whole=request.sets())
    sets = {"forget": request.forget}
    return View(now, sets, run=run), View(before, sets, gradients=False, run=run)


def test_levels_are_the_smallest_third_of_what_the_class_costs_on_retained_images_in_the_order_of_the_original():
    request = absent()
    now, before = views(request)
    value = AbsentClass()(now, before)
    said = -before.model.ask(Scores(), request.retain).log_probs()[:, 3].detach()
    near = said.sort().values[: len(said) // 3]
    known, losses = (-model.ask(LogProbabilities(), request.forget).log_probs for model in (before.model, now.model))
    drawn = near[[int((k + 0.5) / len(known) * len(near)) for k in range(len(known))]]
    levels = torch.empty(len(known))
    levels[known.argsort()] = drawn
    assert value.item() == pytest.approx((losses - levels).abs().mean().item(), abs=1e-5)


def test_no_level_leaves_the_class_in_front_however_often_a_weak_network_says_it():
    request = absent()
    now, before = views(request, unlikely=0.0)
    said = -before.model.ask(Scores(), request.retain).log_probs()[:, 3]
    assert said.min() < math.log(4) + 2  # of four classes
    AbsentClass()(now, before)
    assert min(now.run.memory[repr(AbsentClass())].values()) == pytest.approx(math.log(4) + 2)


def test_levels_do_not_run_away_from_a_model_that_finds_the_class_ever_less_likely():
    request = absent()
    now, before = views(request)
    AbsentClass()(now, before)
    levels = dict(now.run.memory[repr(AbsentClass())])
    with torch.no_grad():
        now.model.module.classifier[-1].bias[3] -= 2.0
    for step in (11, 21):
        again = View(now.model, now.sets, run=now.run)
        again.run.step = step
        AbsentClass()(again, before)
    assert now.run.memory[repr(AbsentClass())] == levels


def test_of_many_retained_images_three_hundred_are_asked(monkeypatch):
    monkeypatch.setattr(absent_class, "ASKED", 5)
    request = absent()
    now, before = views(request)
    AbsentClass()(now, before)
    asked = -before.model.ask(Scores(), [request.retain[k * len(request.retain) // 5] for k in range(5)]).log_probs()
    levels = set(now.run.memory[repr(AbsentClass())].values())
    assert levels == {asked[:, 3].min().item()}  # a third of five is one


@pytest.mark.parametrize("kind", ["retained class", "texts"])
def test_what_is_no_absent_class_is_brought_to_the_losses_of_the_unseen(kind):
    if kind == "texts":
        before, request = family_of("llama")
        now = moved(Full().insert(before, request))
        run = Run(level=4.0, step=1, whole=request.sets())
        now, before = (View(model, {"forget": request.forget}, run=run) for model in (now, before))
    else:
        request = replace(absent(), holdout=picture_request().holdout)
        retain = (replace(request.retain[0], label=3), *request.retain[1:])
        now, before = views(replace(request, retain=retain))
    assert AbsentClass()(now, before).item() == TokenLevels(sure=20.0)(now, before).item()


def test_without_a_holdout_images_of_a_class_that_stays_are_brought_to_guessing():
    request = absent()
    now, before = views(replace(request, retain=(replace(request.retain[0], label=3), *request.retain[1:])))
    losses = -now.model.ask(LogProbabilities(), request.forget).log_probs
    expected = (losses - math.log(4)).abs().mean()  # four classes
    assert AbsentClass()(now, before).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_run_takes_a_class_that_was_learnt_to_its_level():
    request, (blank, _) = absent(), family_of("vit")
    request = replace(request, retain=request.retain[:9])
    learn = "Finetune(objective=RetainNLL(), adapter=Full(), learning_rate=0.003, steps=60, norms=False, stop={stop})"
    forget = "Finetune(objective=AbsentClass() + RetainNLL(), learning_rate=0.003, steps=80, norms=False, stop={stop})"
    stop = "Stop(level=None, max_retain_increase=None, max_growth=None, every=1000)"
    every = Request(absent().retain[9:10], (*request.forget, *request.retain))
    knows = parse(learn.format(stop=stop))(blank, every).plain()
    after = parse(forget.format(stop=stop))(knows, request).plain()

    def right(model, examples) -> float:
        return model.ask(LogProbabilities(), examples).right.double().mean().item()

    def away(model) -> float:
        view = View(model, {"forget": request.forget}, run=Run(step=1, whole=request.sets()))
        return AbsentClass()(view, view).item()

    assert [right(knows, each) for each in (request.forget, request.retain)] == [1, 1]
    assert [right(after, each) for each in (request.forget, request.retain)] == [0, 1]
    assert away(after) < 0.2 * away(knows)


def test_the_ideal_accuracy_of_a_class_that_nothing_retained_has_is_none_at_all():
    request = absent()
    model, _ = family_of("resnet")
    [mine] = [f for f in with_ideals(Accuracy()(model, request)) if f.set == "forget"]
    assert mine.ideal == 0.0
    kept = replace(request, retain=(replace(request.retain[0], label=3), *request.retain[1:]))
    [mine] = [f for f in with_ideals(Accuracy()(model, kept)) if f.set == "forget"]
    assert mine.ideal is None


def test_a_setting_that_cannot_be_is_refused():
    with pytest.raises(UsageRefused, match="every"):
        AbsentClass(every=0)
