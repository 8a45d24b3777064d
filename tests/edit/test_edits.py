"""Edits in one step, worked by hand on a linear classifier, and what they leave alone."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from expunge.attack.quantize import Quantize
from expunge.core.model import Network, answers
from expunge.core.predictions import Predictions
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.edit._dampen import adaptive_alpha, quantile
from expunge.edit._fisher import mean_absolute_gradient, mean_squared_gradient
from expunge.edit.assd import ASSD
from expunge.edit.iau import IAU
from expunge.edit.lfssd import LFSSD
from expunge.edit.negate import Negate
from expunge.edit.ssd import SSD
from expunge.errors import DataRefused, RunFailed, UsageRefused
from expunge.events import Change, Edited
from expunge.internals.gradients import gradient, loss
from expunge.notation.parse import parse
from expunge.primitives.class_scores import Head

torch.set_num_threads(1)


@dataclass(frozen=True)
class Point:
    """Features and a class."""

    id: str
    x: tuple[float, ...]
    label: int = 0
    rows: int = 1
    size: int = 1
    alternatives: tuple = ()
    weight: float = 1.0

    def record_digest(self) -> str:
        return self.id

    fact_digest = record_digest


@dataclass(frozen=True)
class Linear(Network):
    """Class scores W x."""

    at_once: int = 100
    """Examples that a call reads."""

    @answers(Scores)
    def scores(self, question: Scores, batch: list[Point]) -> Predictions:
        weight = self.module.weight
        x = torch.tensor([point.x for point in batch], dtype=weight.dtype)
        labels = torch.tensor([point.label for point in batch])
        return Predictions(labels, torch.arange(len(batch)), len(batch), None, x, Head(weight))

    def batches(self, examples: list[Point]) -> Iterator[list[int]]:
        for start in range(0, len(examples), self.at_once):
            yield list(range(start, min(start + self.at_once, len(examples))))

    def save(self, folder: Path) -> None:
        raise NotImplementedError

    def head(self) -> Head:
        return Head(self.module.weight)

    def settings(self) -> str:
        return ""


def linear(*rows: tuple[float, ...], dtype: torch.dtype = torch.float64, at_once: int = 100) -> Linear:
    module = nn.Linear(len(rows[0]), len(rows), bias=False, dtype=dtype)
    module.weight.data = torch.tensor(rows, dtype=dtype)
    return Linear(module, at_once)


def weights(network: Network) -> list[list[float]]:
    return network.module.weight.tolist()


# Both rows of W are equal, so both classes have probability 1/2. The forget example is of feature 0 alone, the three
# retain examples of feature 1 alone; all are of class 0. The gradient of an example's cross-entropy is
# (p - onehot) x: (-1/2, 1/2) times its feature 2, so -1 in row 0 and 1 in row 1.
NETWORK = linear((3.0, 5.0), (3.0, 5.0))
FORGET = Point("f", (2.0, 0.0))
RETAIN = tuple(Point(f"r{k}", (0.0, 2.0)) for k in range(3))
REQUEST = Request(forget=(FORGET,), retain=RETAIN)


def near(one: object, other: object) -> bool:
    return np.allclose(one, other, rtol=1e-12)


def test_importances_worked():
    every = (*RETAIN, FORGET)
    assert near(mean_squared_gradient(NETWORK, (FORGET,), 1)["weight"], [[1, 0], [1, 0]])
    # one of the four examples has feature 0, three have feature 1
    assert near(mean_squared_gradient(NETWORK, every, 1)["weight"], [[1 / 4, 3 / 4], [1 / 4, 3 / 4]])
    # |W x|^2 = 2 * (3 * 2)^2; its slope in each row is 2 * 6 * 2 = 24; of a retain example 2 * 10 * 2 = 40
    assert near(mean_absolute_gradient(NETWORK, (FORGET,), 1)["weight"], [[24, 0], [24, 0]])
    assert near(mean_absolute_gradient(NETWORK, every, 1)["weight"], [[24 / 4, 40 * 3 / 4], [24 / 4, 40 * 3 / 4]])


def test_the_square_is_of_a_batchs_mean_gradient():
    pair = (FORGET, Point("g", (2.0, 0.0), label=1))  # their gradients are opposite
    assert near(mean_squared_gradient(NETWORK, pair, 1)["weight"], [[1, 0], [1, 0]])
    assert near(mean_squared_gradient(NETWORK, pair, 2)["weight"], [[0, 0], [0, 0]])


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_batch_read_in_parts_is_the_batch_read_at_once(at_once: int):
    draw = torch.Generator().manual_seed(0)
    points = tuple(Point(f"{k}", tuple(torch.randn(3, generator=draw).tolist()), label=k % 2) for k in range(7))
    whole, parts = (linear((0.3, -0.2, 0.1), (0.0, 0.5, -0.4), at_once=n) for n in (100, at_once))
    for of in (mean_squared_gradient, mean_absolute_gradient):
        for batch in (2, 7):
            one, other = (of(network, points, batch)["weight"] for network in (whole, parts))
            assert torch.allclose(one, other, rtol=1e-12)
    one, other = (gradient(n, loss, (1.0, points), (-1.0, points[:2]))["weight"] for n in (whole, parts))
    assert torch.allclose(one, other, rtol=1e-12)


def test_ssd_shrinks_by_the_ratio_of_importances_and_by_no_more_than_asked():
    # Feature 0 has importance 1 to the forget set and 1/4 to all: ratio 4.
    assert near(weights(SSD(alpha=2.0, batch=1)(NETWORK, REQUEST)), [[3 / 4, 5.0], [3 / 4, 5.0]])
    assert near(weights(SSD(alpha=2.0, dampening=2.0, batch=1)(NETWORK, REQUEST)), [[3 / 2, 5.0], [3 / 2, 5.0]])
    assert near(weights(SSD(alpha=2.0, dampening=0.0, batch=1)(NETWORK, REQUEST)), [[0.0, 5.0], [0.0, 5.0]])
    # min(8 / 4, 1): nothing ever grows
    assert weights(SSD(alpha=2.0, dampening=8.0, batch=1)(NETWORK, REQUEST)) == weights(NETWORK)


def test_ssd_selects_above_its_threshold_and_not_below_it():
    assert weights(SSD(alpha=3.9, batch=1)(NETWORK, REQUEST)) != weights(NETWORK)
    assert weights(SSD(alpha=4.1, batch=1)(NETWORK, REQUEST)) == weights(NETWORK)


# Feature 0 alone tells the classes apart, and one of four retain examples reads it a little. With slope(m) the
# probability of the wrong class at margin m, importances are (x * slope)^2, of all data the mean over five examples.
TELLING = linear((1.0, 5.0), (0.0, 5.0))
FAINT = Point("faint", (0.2, 0.0))


def slope(margin: float) -> float:
    return 1 / (1 + math.exp(margin))


def climbed(allowed: float) -> tuple[Network, Edited, str]:
    events: list = []
    method = SSD(batch=1, max_retain_increase=allowed)
    result = method(TELLING, Request((FORGET,), (*RETAIN, FAINT)), events.append)
    note, edited = events
    return result, edited, note.what


def test_the_ladder_is_climbed_as_far_as_the_retain_set_asks_and_no_further():
    own, faint = (2 * slope(2)) ** 2, (0.2 * slope(0.2)) ** 2
    ratio = own / ((own + faint) / 5)
    assert 2 < ratio < 5  # so the rungs 1 and 2 shrink both weights of feature 0 by the ratio, and 5 shrinks none
    rise = (math.log1p(math.exp(-0.2 / ratio)) - math.log1p(math.exp(-0.2))) / 4
    result, edited, said = climbed(allowed=1.001 * rise)
    assert near(weights(result), [[1 / ratio, 5.0], [0.0, 5.0]])
    assert (edited.alpha, edited.losses) == (1.0, {"retain increase at alpha 1": pytest.approx(rise, rel=1e-9)})
    assert said == f"SSD picked alpha 1 on 4 retain examples: the smallest that is allowed (+{rise:.3f} nats)"
    result, edited, said = climbed(allowed=0.999 * rise)
    assert weights(result) == weights(TELLING)
    assert (edited.alpha, edited.selected) == (5.0, 0)
    assert list(edited.losses.values()) == [pytest.approx(rise, rel=1e-9), pytest.approx(rise, rel=1e-9), 0.0]
    assert "picked alpha 5" in said


def test_a_threshold_that_is_given_is_run_as_it_is():
    events: list = []
    harm = Request((FORGET,), (*RETAIN, FAINT))
    result = SSD(alpha=1.0, batch=1, max_retain_increase=0.0)(TELLING, harm, events.append)
    assert weights(result) != weights(TELLING)
    assert [(type(event), event.alpha, event.losses) for event in events] == [(Edited, 1.0, {})]


def test_a_dead_weight_is_left_alone():
    network = linear((3.0, 5.0, 7.0), (3.0, 5.0, 7.0))  # no example has feature 2: 0 against 0
    request = Request((Point("f", (2.0, 0.0, 0.0)),), tuple(Point(f"r{k}", (0.0, 2.0, 0.0)) for k in range(3)))
    for method in (SSD(alpha=0.0, batch=1), LFSSD(alpha=0.0, batch=1), LFSSD(batch=1), ASSD(batch=1)):
        assert [row[2] for row in weights(method(network, request))] == [7.0, 7.0]


def test_lfssd_reads_no_label():
    one = LFSSD(alpha=2.0, batch=1)(NETWORK, REQUEST)
    assert near(weights(one), [[3 / 4, 5.0], [3 / 4, 5.0]])  # 24 against 6
    wrong = Request((replace(FORGET, label=1),), tuple(replace(point, label=1) for point in RETAIN))
    assert weights(LFSSD(alpha=2.0, batch=1)(NETWORK, wrong)) == weights(one)
    # while SSD does: of a class that has probability 1 no gradient is left
    sure = linear((60.0, 60.0), (0.0, 0.0))
    assert weights(SSD(alpha=2.0, batch=1)(sure, REQUEST)) == weights(sure)
    assert near(weights(LFSSD(alpha=2.0, batch=1)(sure, REQUEST)), [[15.0, 60.0], [0.0, 0.0]])


def test_the_order_of_a_file_does_not_matter_to_dampening():
    draw = torch.Generator().manual_seed(0)
    points = tuple(Point(f"{k}", tuple(torch.randn(3, generator=draw).tolist()), label=k % 2) for k in range(12))
    network = linear((0.3, -0.2, 0.1), (0.0, 0.5, -0.4))
    for method in (SSD(alpha=1.0, batch=4), LFSSD(alpha=1.0, batch=4)):
        one, other = (method(network, Request(p[:5], p[5:])) for p in (points, (*points[4::-1], *points[:4:-1])))
        assert weights(one) == weights(other)
        assert weights(one) != weights(network)


def test_the_adaptive_threshold_is_the_percentile_of_the_finite_ratios():
    draw = torch.Generator().manual_seed(0)
    forget = {"a": torch.rand(40, 5, generator=draw), "b": torch.rand(7, generator=draw)}
    whole = {"a": torch.rand(40, 5, generator=draw), "b": torch.rand(7, generator=draw)}
    whole["a"][3, :4] = 0.0  # infinite ratios
    forget["b"][2], whole["b"][2] = 0.0, 0.0  # 0 / 0
    request = Request((FORGET,), RETAIN)  # 1 of 4
    ratios = np.concatenate([(forget[n].double() / whole[n].double()).flatten().numpy() for n in "ab"])
    place = 100 - math.log(1 + 100 * 1 / 4)
    wanted = np.percentile(ratios[np.isfinite(ratios)], place)
    assert adaptive_alpha(forget, whole, request) == pytest.approx(wanted, rel=1e-6)


def test_a_quantile_lies_between_its_neighbours_in_proportion():
    values = np.array([4.0, 1.0, 3.0], dtype=np.float32)
    assert quantile(values, 0.0) == 1.0
    assert quantile(values, 1.0) == 4.0
    assert quantile(values, 0.5) == 3.0
    assert quantile(values, 0.75) == pytest.approx(3.5)
    with pytest.raises(DataRefused, match="nothing to dampen"):
        quantile(np.empty(0, dtype=np.float32), 0.5)


def test_an_edit_tells_what_it_changed():
    events = []
    SSD(alpha=2.0, batch=1)(NETWORK, REQUEST, events.append)
    (told,) = events
    # two of four numbers, each from 3 to 3/4
    counts = (2, 4, pytest.approx(math.sqrt(2) * 9 / 4))
    assert told == Edited(*counts, {"weight": Change(*counts)}, selected=2, alpha=2.0)


# IAU


def test_iau_takes_one_step_of_one_size_away_from_the_forget_set_and_toward_the_retain_set():
    # grad CE(retain) = ((0, -1), (0, 1)); grad CE(forget) = ((-1, 0), (1, 0)); g = ((1, -1), (-1, 1))
    result = weights(IAU(learning_rate=0.25)(NETWORK, REQUEST))
    assert np.allclose(result, [[3 - 0.25, 5 + 0.25], [3 + 0.25, 5 - 0.25]], atol=1e-8)


def test_iau_by_sgd_goes_by_the_gradients_size():
    forget = replace(FORGET, x=(6.0, 0.0))  # gradient 3 times as large
    result = weights(IAU(learning_rate=0.25, step="sgd")(NETWORK, Request((forget,), RETAIN)))
    assert np.allclose(result, [[3 - 0.75, 5 + 0.25], [3 + 0.75, 5 - 0.25]], rtol=1e-12)


def test_without_the_correction_iau_moves_by_the_forget_set_alone():
    for request in (REQUEST, Request((FORGET,))):
        result = weights(IAU(learning_rate=0.25, correction=0.0)(NETWORK, request))
        assert np.allclose(result, [[2.75, 5.0], [3.25, 5.0]], atol=1e-8)
    with pytest.raises(DataRefused, match="IAU corrects its step by the retain set"):
        IAU()(NETWORK, Request((FORGET,)))


def test_iau_by_adam_is_the_first_step_of_torchs_adam():
    draw = torch.Generator().manual_seed(0)
    points = tuple(Point(f"{k}", tuple(torch.randn(3, generator=draw).tolist()), label=k % 2) for k in range(9))
    network, request = linear((0.3, -0.2, 0.1), (0.0, 0.5, -0.4)), Request(points[:3], points[3:])
    module = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    module.weight.data = network.module.weight.detach().clone()
    other = Linear(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    (other.ask(Scores(), request.retain).nll() - other.ask(Scores(), request.forget).nll()).backward()
    optimizer.step()
    assert near(weights(IAU(learning_rate=1e-2)(network, request)), weights(other))


def test_a_step_of_a_bfloat16_network_adds_up_its_gradients_in_float32():
    # 512 gradients of 1/512 each, read one by one: in bfloat16 their sum would stop growing half-way
    points = tuple(Point(f"{k}", (2.0, 0.0)) for k in range(512))
    slope = gradient(linear((3.0, 5.0), (3.0, 5.0), dtype=torch.bfloat16, at_once=1), loss, (1.0, points))["weight"]
    assert slope.dtype == torch.float32
    assert slope[:, 0].tolist() == pytest.approx([-1.0, 1.0], rel=1e-3)


# Task vectors


HEART = "Finetune(objective=-1.0 * Ascent(), adapter=Full(), learning_rate=0.5, steps=4, batch=1, "
HEART += "stop=Stop(level=None, max_retain_increase=None), norms=False)"


def test_negation_goes_as_far_to_the_other_side_as_learning_went():
    learn = parse(HEART)
    over, was = (network.module.weight.detach() for network in (learn(NETWORK, REQUEST).plain(), NETWORK))
    assert (over - was)[0, 0] > 0.1  # it learnt: the score of class 0 on feature 0 rose
    for scale in (0.5, 1.0, 3.0):
        result = Negate(scale=scale, learn=learn)(NETWORK, REQUEST)
        assert torch.allclose(result.module.weight, was - scale * (over - was), rtol=1e-12)
    assert weights(Negate(scale=0.0, learn=learn)(NETWORK, REQUEST)) == weights(NETWORK)
    assert torch.allclose(Negate(scale=-1.0, learn=learn)(NETWORK, REQUEST).module.weight, over, rtol=1e-12)


def test_negation_raises_the_forget_loss_and_keeps_the_networks_own_precision():
    network = linear((3.0, 5.0), (3.0, 5.0), dtype=torch.bfloat16)
    result = Negate(learn=parse(HEART))(network, REQUEST)
    assert result.module.weight.dtype == torch.bfloat16  # though all weights were trained in float32
    assert result.ask(Scores(), [FORGET]).nll() > network.ask(Scores(), [FORGET]).nll() + 0.5


def test_what_learns_by_heart_must_be_a_method():
    with pytest.raises(UsageRefused, match="The `learn` of Negate must be a Method"):
        parse("Negate(learn=Loss())")
    assert "objective=-1.0 * Ascent()" in repr(Negate())


# Refusals


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("SSD(alpha=-1.0)", "SSD: `alpha`, `dampening` and `max_retain_increase` must be at least 0"),
        ("SSD(max_retain_increase=-0.1)", "`max_retain_increase` must be at least 0"),
        ("SSD(batch=0)", "`batch` at least 1"),
        ("ASSD(batch=0)", "The `batch` of ASSD must be at least 1. Got 0."),
        ("LFSSD(dampening=-0.5)", "`dampening` at least 0"),
        ("LFSSD(alpha=-2)", "`alpha` must be None or at least 0"),
        ("IAU(learning_rate=-1.0)", "`learning_rate` and `correction` must be at least 0"),
        ("IAU(step='rmsprop')", "The `step` of IAU must be one of adam, sgd"),
    ],
)
def test_settings_that_mean_nothing_are_refused(typed: str, said: str):
    with pytest.raises(UsageRefused) as refused:
        parse(typed)
    assert said in str(refused.value)


@pytest.mark.parametrize("method", [SSD(), ASSD(), LFSSD()], ids=repr)
def test_dampening_without_the_rest_of_the_data_is_refused(method):
    with pytest.raises(DataRefused, match=f"{type(method).__name__} compares the forget set with all training data"):
        method(NETWORK, Request((FORGET,)))


def test_a_broken_model_is_refused_by_the_ids_of_its_records():
    broken = linear((math.nan, 5.0), (3.0, 5.0))
    with pytest.raises(RunFailed, match=r"NaN or infinite \(records f\)"):
        IAU(correction=0.0)(broken, REQUEST)


# Memory


WIDTH, LAYERS = 200, 20


@dataclass(frozen=True)
class Deep(Linear):
    """Many equal layers, so that what is made for one of them at a time is small beside the whole."""

    @answers(Scores)
    def scores(self, question: Scores, batch: list[Point]) -> Predictions:
        x = torch.tensor([point.x for point in batch])
        labels = torch.tensor([point.label for point in batch])
        return Predictions(labels, torch.arange(len(batch)), len(batch), None, self.module(x))


def deep() -> Deep:
    torch.manual_seed(0)
    return Deep(nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS))))


def held(work: Callable[[], object]) -> float:
    """The most that tensors hold at one time beyond what they held before, in sizes of the network."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        kept = work()
    events = told.profiler.kineto_results.events()
    moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    del kept
    return max(itertools.accumulate(move for _, move in moves)) / (4 * LAYERS * WIDTH**2)


@pytest.mark.parametrize(
    ("method", "sizes"),
    [
        (IAU(), 2),  # the gradient, the result
        (SSD(batch=2), 3),  # two importances and, one after the other, a gradient and the result
        (ASSD(batch=2), 3),
        (LFSSD(batch=2), 3),
        (Quantize(), 1),  # the result
    ],
    ids=repr,
)
def test_no_edit_makes_a_copy_of_the_weights_beside_its_result(method, sizes: int):
    draw = torch.Generator().manual_seed(0)
    points = tuple(Point(f"{k}", tuple(torch.randn(WIDTH, generator=draw).tolist()), label=k) for k in range(6))
    network, request = deep(), Request(points[:2], points[2:])
    assert sizes <= held(lambda: method(network, request)) < sizes + 0.4
