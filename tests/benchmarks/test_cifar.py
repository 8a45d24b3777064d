"""Forgetting pictures: what is drawn, what is measured of it, and what is made of the values."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from expunge.benchmarks._data import Data
from expunge.benchmarks._forgetting import Forgetting
from expunge.benchmarks._job import Job, Result
from expunge.benchmarks._kinds import Stage
from expunge.benchmarks._picture_numbers import numbers
from expunge.benchmarks._pictures import Drawn, probe, read_each
from expunge.benchmarks._show import gather
from expunge.benchmarks._values import IDENTITY, Column, Values
from expunge.benchmarks.cifar import Cifar
from expunge.benchmarks.tofu import TOFU
from expunge.core.method import Method
from expunge.core.request import Request
from expunge.errors import DataRefused, UsageRefused
from expunge.events import ignore_event
from expunge.models.vision import ImageClassifier
from expunge.notation.parse import parse
from expunge.runtime.cached_model import CachedModel
from expunge.select.hardest import Hardest
from tests.benchmarks import tiny_cifar
from tests.benchmarks.tiny_cifar import NAMES

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return Data(tiny_cifar.parquet(tmp_path_factory.mktemp("cifar") / "cifar10"), Cifar.home)


@pytest.fixture(scope="module")
def network() -> ImageClassifier:
    return tiny_cifar.network()


def labels(pictures) -> set[int]:
    return {picture.label for picture in pictures}


def digests(pictures) -> set[str]:
    return {picture.record_digest() for picture in pictures}


# What is drawn


@pytest.mark.parametrize(
    ("settings", "gone"),
    [
        ({"forget_class": "blue"}, [{2}]),
        ({"forget_class": "3, red"}, [{3, 0}]),
        ({"forget_class": "red+blue"}, [{0, 2}]),
        ({"task": "continual", "forget_class": "grey,red+blue"}, [{3}, {0, 2}]),
        ({"task": "continual", "forget_class": "grey,red", "replay": 2, "no_replay": "blue"}, [{3}, {0}]),
        ({"forget_class": "green", "replay": 0}, [{1}]),
    ],
)
def test_no_forgotten_class_is_in_what_is_retained_or_in_the_test_of_the_rest(data, network, settings, gone):
    """The law of a deletion: everything of the class is forgotten, and nothing of it is left anywhere else."""
    stages = Cifar(**settings).stages(data, network)
    assert len(stages) == len(gone)
    earlier: set[int] = set()
    for stage, now in zip(stages, gone, strict=True):
        sets = stage.sets
        assert labels(stage.request.forget) == labels(sets["forget"]) == labels(sets["forget test"]) == now
        for others in (stage.request.retain, sets["retain"], sets["test"]):
            assert not labels(others) & (now | earlier)
        assert len(sets["forget"]) == 10 * len(now)
        assert len(sets["retain"]) == 10 * (4 - len(now | earlier))
        assert len(sets["test"]) == 5 * (4 - len(now | earlier))
        assert not digests((*sets["forget"], *sets["retain"])) & digests((*sets["test"], *sets["forget test"]))
        earlier |= now


def test_a_share_at_random_leaves_the_rest_and_a_holdout_that_is_not_measured(data, network):
    [stage] = Cifar(task="random", share=0.2).stages(data, network)
    request, sets = stage.request, stage.sets
    assert (len(request.forget), len(request.retain), len(request.holdout), len(sets["test"])) == (8, 32, 10, 10)
    parts = [digests(part) for part in (request.forget, request.retain, request.holdout, sets["test"])]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 60
    assert labels(request.forget) < set(range(4)) or len(labels(request.forget)) == 4
    [again] = Cifar(task="random", share=0.2).stages(data, network)
    assert [p.id for p in again.request.forget] == [p.id for p in request.forget]
    [other] = Cifar(task="random", share=0.2, draw=1).stages(data, network)
    assert digests(other.request.forget) != digests(request.forget)


def test_a_selector_picks_what_is_forgotten_and_the_rest_is_retained(data, network):
    [chance] = Cifar(task="random", share=0.2).stages(data, network)
    [stage] = Cifar(task="random", select="Hardest(count=5, rounds=2, learning_rate=0.01)").stages(data, network)
    picked = Hardest(count=5, rounds=2, learning_rate=0.01)(
        network, (), [[picture] for picture in (*chance.request.forget, *chance.request.retain)]
    ).indices
    every = (*chance.request.forget, *chance.request.retain)
    assert [p.id for p in stage.request.forget] == [every[k].id for k in picked]
    parts = [digests(part) for part in (stage.request.forget, stage.request.retain)]
    assert list(map(len, parts)) == [5, 35]
    assert set().union(*parts) == digests(every)
    assert digests(stage.sets["test"]) == digests(chance.sets["test"])
    with pytest.raises(UsageRefused, match="a model picks the pictures itself"):
        Cifar(task="random", select="Hardest(count=5)").measure(network, data, CachedModel(network), ignore_event)


def test_of_replay_a_method_gets_so_many_of_each_class_and_none_of_those_left_out(data, network):
    last = Cifar(task="continual", forget_class="red,grey", replay=3, no_replay="blue").stages(data, network)[-1]
    assert [p.label for p in last.request.retain] == [1, 1, 1]
    assert labels(last.sets["not replayed"]) == {2}
    assert {name: labels(last.sets[name]) for name in ("test of red", "test of grey")} == {
        "test of red": {0},
        "test of grey": {3},
    }
    assert labels(last.learnt) == {0, 1, 2, 3}


def test_equal_pictures_are_read_once_and_no_test_picture_was_trained_on(tmp_path: Path, network):
    folder = tiny_cifar.parquet(tmp_path / "c", train=8, test=8)
    train, test = (pq.read_table(folder / f"{part}.parquet") for part in ("train", "test"))
    doubled = pa.concat_tables([train, train.slice(0, 2)])
    pq.write_table(doubled, folder / "train.parquet")
    pq.write_table(pa.concat_tables([test, train.slice(0, 3)]), folder / "test.parquet")
    drawn = Drawn.read(Data(folder, ""), network, (0, 0), 0)
    assert (len(drawn.train), len(drawn.test)) == (8, 8)
    assert not digests(drawn.train) & digests(drawn.test)


def test_folders_of_pictures_are_read_as_tables_are_and_fewer_may_be_asked_for(tmp_path: Path, network):
    folder = Data(tiny_cifar.folders(tmp_path), "")
    drawn = Drawn.read(folder, network, (5, 0), 0)
    assert (len(drawn.train), len(drawn.test)) == (5, 8)
    assert {(p.id.split("/")[0], p.label) for p in drawn.test} == {(name, k) for k, name in enumerate(NAMES)}


@pytest.mark.parametrize("place", ["plain_text", "cifar100"])
def test_tables_are_found_where_the_hub_has_them(tmp_path: Path, network, place: str):
    made = tiny_cifar.parquet(tmp_path / "made")
    (tmp_path / place).mkdir()
    for part in ("train", "test"):
        (made / f"{part}.parquet").rename(tmp_path / place / f"{part}-00000-of-00001.parquet")
    assert len(Drawn.read(Data(tmp_path, ""), network, (0, 0), 0).train) == 40


@pytest.mark.parametrize(
    ("settings", "error", "why"),
    [
        (
            {"forget_class": "purple"},
            UsageRefused,
            "`forget_class` of Cifar: the model has no class 'purple'. red, green",
        ),
        ({"no_replay": "7"}, UsageRefused, "`no_replay` of Cifar: the model has no class '7'"),
        ({"forget_class": "red+green+blue+grey"}, DataRefused, "the set 'retain' has no picture"),
        ({"train_pictures": 1, "forget_class": "red+green"}, DataRefused, "has no picture"),
    ],
)
def test_what_cannot_be_drawn_is_refused(data, network, settings, error, why):
    with pytest.raises(error, match=why):
        Cifar(**settings).stages(data, network)


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.0}, {"replay": -1}, {"draw": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(UsageRefused, match="of Cifar must"):
        Cifar(**settings)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"task": "random", "select": "Nearest(count=3)"}, "that needs no forget set"),
        ({"task": "random", "select": "Ascent()"}, "must be a selector"),
        ({"task": "class", "select": "Hardest()"}, "is for the task random. Got the task class"),
    ],
)
def test_what_cannot_pick_pictures_is_refused_before_any_is_read(settings, why):
    with pytest.raises(UsageRefused, match=why):
        Cifar(**settings)


def test_a_folder_without_pictures_says_what_it_looked_for(tmp_path: Path, network):
    with pytest.raises(DataRefused, match=r"holds no train.parquet, no folder train/ .* no binary archive"):
        Cifar().stages(Data(tmp_path, Cifar.home), network)


# What is made of the values


def values(columns: Mapping[tuple[str, str], list[float]]) -> Values:
    return Values({Column(*name): dict(enumerate(column)) for name, column in columns.items()})


def model(forget: list[float], test: list[float], **others: list[float]) -> Values:
    """Whether each picture is right; who is, is sure of it (p = 0.9, entropy 0.1), who is not, is not (0.1, 2)."""
    sets = {"forget": forget, "forget test": forget, "retain": [1, 1, 1, 0], "test": test}
    made = {}
    for name, right in sets.items():
        made[name, "right"] = right
        made[name, "loss"] = [-math.log(0.9 if r else 0.1) for r in right]
        made[name, "entropy"] = [0.1 if r else 2.0 for r in right]
    return values(made | {("forget test", "probe"): [1, 1, 1, 0]} | others)


def by_place(found) -> dict[tuple[str, str, str], float | None]:
    return {(n.name, n.set, n.against): n.value for n in found}


def test_every_number_of_a_deletion_by_hand():
    """Of the class and of the others are right: before 4 and 3 of 4; after 1 and 2; of the retrained model 0 and 3."""
    before, retrained = model([1, 1, 1, 1], [1, 1, 1, 0]), model([0, 0, 0, 0], [1, 1, 1, 0])
    retrained = retrained.join(values({("run", "seconds"): [40.0]}))
    curve = {("forget", f"right after {steps}"): [float(steps >= 4), 1] for steps in (1, 2, 4, 8, 16)}
    after = model([1, 0, 0, 0], [1, 1, 0, 0]).join(values(curve | {("run", "seconds"): [10.0]}))
    found = by_place(numbers(after, {"original": before, "retrained": retrained}))
    assert found["accuracy", "forget", ""] == found["accuracy", "forget test", ""] == 0.25
    assert (found["accuracy", "retain", ""], found["accuracy", "test", ""]) == (0.75, 0.5)
    assert found["UA", "forget", ""] == found["forget quality", "forget test", ""] == 0.75
    assert found["linear probe", "forget test", ""] == 0.75
    assert found["MIA efficacy", "forget", ""] == 0.75  # the three of four that are as unsure as most strangers
    assert found["called members", "forget", ""] == 0.25
    assert found["H-mean", "all", "original"] == pytest.approx(2 * 0.5 * 0.75 / (0.5 + 0.75))
    assert found["relative test accuracy", "test", "original"] == pytest.approx(0.5 / 0.75)
    assert found["relearn steps", "forget", "original"] == 4
    # UA 0.75 and 1, RA equal, TA 0.5 and 0.75, MIA efficacy 0.75 and what the retrained model's attacker says
    mia = by_place(numbers(retrained, {}))["MIA efficacy", "forget", ""]
    assert found["average gap", "all", "retrained"] == pytest.approx((0.25 + 0 + 0.25 + abs(0.75 - mia)) / 4)
    assert found["KS p", "forget", "retrained"] == pytest.approx(1.0)  # a distance of 1/4 between four and four
    assert found["share of retraining's time", "run", "retrained"] == 0.25
    assert ("H-mean", "all", "retrained") not in found
    assert ("average gap", "all", "original") not in found


def test_a_model_that_forgot_nothing_has_no_harmonic_mean_and_is_relearnt_at_once():
    before = model([1, 1, 1, 1], [1, 1, 1, 0])
    curve = {("forget", f"right after {steps}"): [1.0, 1.0] for steps in (1, 2, 4, 8, 16)}
    found = by_place(numbers(before.join(values(curve)), {"before": before}))
    assert found["H-mean", "all", "before"] == 0
    assert found["relearn steps", "forget", "before"] == 1


def test_what_is_never_relearnt_has_no_number():
    before = model([1, 1, 1, 1], [1, 1, 1, 0])
    curve = {("forget", f"right after {steps}"): [0.0, 1.0] for steps in (1, 2, 4, 8, 16)}
    found = by_place(numbers(model([0] * 4, [1, 1, 1, 0]).join(values(curve)), {"original": before}))
    assert found["relearn steps", "forget", "original"] is None


# What is measured


def test_a_probe_finds_a_class_that_the_last_layer_no_longer_names(data, network):
    """Colours are in the features of random weights; a last layer that never says red does not take them away."""
    [stage] = Cifar(forget_class="red").stages(data, network)
    head = network.fork(network.module)
    values = probe(head, stage.learnt, "forget test", stage.sets["forget test"])
    assert values.of("forget test", "probe") == [1.0] * 5
    stage = replace(stage, request=Request(stage.request.forget[:5]))
    said = Cifar().examine(head, stage, head)
    assert len(said.of("forget", "right after 1")) == 3  # two are trained on, and not asked
    assert said.of("forget test", "probe") == [1.0] * 5
    assert said.of("forget", "loss") == pytest.approx([-math.log(p) for p in _probabilities(head, stage)], rel=1e-5)


def test_each_picture_has_a_number_by_which_it_is_known_again(data, network):
    [one], [other] = (Cifar(task="random", draw=draw).stages(data, network) for draw in (0, 1))
    known, anew, others = (read_each(network, stage.sets) for stage in (one, one, other))
    numbers = known.of("forget", IDENTITY) + known.of("retain", IDENTITY)
    assert numbers == anew.of("forget", IDENTITY) + anew.of("retain", IDENTITY)
    assert len(set(numbers)) == len(numbers) == 40
    assert all(number == int(number) < 2**48 for number in numbers)
    assert known.of("forget", IDENTITY) != others.of("forget", IDENTITY)
    assert set(numbers) == {*others.of("forget", IDENTITY), *others.of("retain", IDENTITY)}


def _probabilities(network, stage: Stage) -> list[float]:
    pixels = torch.stack([picture.pixels for picture in stage.sets["forget"]])
    with torch.no_grad():
        return network.module(pixel_values=pixels).logits.softmax(-1)[:, 0].tolist()


# Methods


NUDGE = "Finetune(objective=Ascent(), adapter=LastLayer(), learning_rate=0.05, steps=3, stop=None, norms=False)"


@pytest.fixture(scope="module")
def benched(network, tmp_path_factory) -> tuple[Path, list[Path], list[str]]:
    """Two classes of one training picture each in a row, by a method that works, and one that cannot run."""
    place = tmp_path_factory.mktemp("benched")
    network.save(place / "model")
    tiny_cifar.network(1).save(place / "other")
    job = Job(
        Cifar(task="continual", forget_class="red,blue", replay=0),
        str(place / "model"),
        place / "out",
        str(tiny_cifar.parquet(place / "few", train=4, test=8)),
        (f"retrained={place / 'other'}",),
    )
    methods = {"nudge": _method(NUDGE), "GD": _method(NUDGE.replace("Ascent", "GradDiff"))}
    made, failed = Forgetting(job, methods, (0, 1)).run(ignore_event)
    return place / "out", made, failed


def test_every_method_request_and_seed_has_a_folder_beside_the_yardsticks(benched):
    out, made, _ = benched
    names = {str(folder.relative_to(out)) for folder in made}
    assert names == {
        "original",
        "retrained",
        *(f"nudge-{k}/seed-{seed}" for k in (1, 2) for seed in (0, 1)),
    }


def test_a_method_that_cannot_run_is_named_and_leaves_no_folder(benched):
    out, _, failed = benched
    assert [line.split(":")[0] for line in failed] == ["GD/seed-0", "GD/seed-1"]
    assert not list(out.glob("GD*"))


def test_each_request_is_held_against_the_model_before_it(benched):
    out, _, _ = benched
    first, second = (Result.read(out / f"nudge-{k}" / "seed-0") for k in (1, 2))
    assert [name for name, _ in first.references] == ["original", "retrained"]
    assert [name for name, _ in second.references] == ["original", "before", "retrained"]
    assert first.method == second.method == repr(parse(NUDGE))
    sets = {number.set for number in second.numbers if number.name == "accuracy"}
    assert {"test of red", "test of blue"} < sets
    assert "test of blue" not in {number.set for number in first.numbers}
    original, before = (Values.read(out / "nudge-2" / "seed-0" / "references" / f"{k}.parquet") for k in (0, 1))
    assert original.of("forget", "loss") != before.of("forget", "loss")  # the first request has changed it


def test_a_method_goes_on_from_what_it_made_of_the_request_before(benched, network):
    out, _, _ = benched
    benchmark = Cifar(task="continual", forget_class="red,blue", replay=0)
    made = network
    for stage in benchmark.stages(Data(out.parent / "few", ""), network):
        made = _method(NUDGE)(made, stage.request).plain()
    assert Result.read(out / "nudge-2" / "seed-0").fingerprint == made.fingerprint()


def test_seeds_are_one_column_and_classes_in_a_row_several(benched):
    _, made, _ = benched
    table = gather(made)
    assert {runs.name: len(runs.numbers) for runs in table.runs} == {
        "original": 1, "retrained": 1, "nudge-1": 2, "nudge-2": 2,
    }  # fmt: skip


def test_a_method_that_draws_nothing_by_chance_runs_once(tmp_path: Path):
    forgetting = Forgetting(Job(Cifar(), "m", tmp_path), {}, (3, 4))
    assert [ending for ending, _ in forgetting._with_seeds(_method("SSD()"))] == ["/seed-3"]
    assert [(ending, own.seed) for ending, own in forgetting._with_seeds(_method(NUDGE))] == [
        ("/seed-3", 3),
        ("/seed-4", 4),
    ]


def _method(text: str) -> Method:
    made = parse(text)
    assert isinstance(made, Method)
    return made


def test_a_benchmark_that_draws_no_request_takes_no_method(tmp_path: Path):
    with pytest.raises(UsageRefused, match="--method: TOFU measures a model. Let `expunge forget` make one"):
        Forgetting(Job(TOFU(), "m", tmp_path), {"a": _method(NUDGE)}).run(ignore_event)


@pytest.mark.parametrize("name", ["original", "before", "retrained"])
def test_no_two_models_have_one_name(tmp_path: Path, name: str):
    with pytest.raises(UsageRefused, match=f"'{name}' is the name of two models"):
        Forgetting(Job(Cifar(), "m", tmp_path, references=("retrained=x",)), {name: _method(NUDGE)}).run(ignore_event)
