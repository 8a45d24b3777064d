"""A run that was cut off goes on as if it had not been, to the bit, or is refused where it is another."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.core.objective import Objective
from expunge.core.view import View
from expunge.errors import ModelRefused, RunFailed, UsageRefused
from expunge.notation.parse import parse
from expunge.runtime.atomic_files import check_manifest
from expunge.train.checkpoint import Checkpoints, keep_checkpoints
from tests.train.cut_runs import REQUEST, SETTINGS, CutOffError, Watcher, cut, run, tiny, weights

torch.set_num_threads(1)


@pytest.mark.parametrize(
    "settings",
    [
        f"adapter=Bounded(rank=2), {SETTINGS}",
        f"adapter=LoRA(rank=2), clip=0.5, warmup=3, accumulate=2, {SETTINGS}",
        f"adapter=Full(), {SETTINGS}",
        f"adapter=Full(), prune=InfoBatch(q=0.3), {SETTINGS}",
        f"adapter=Full(), optimizer='sgd', objective=SCRUB(alpha=0.5), {SETTINGS}",
        # objectives that remember: a multiplier that follows the losses, and a direction drawn once
        f"objective=PDU(warmup=2) + RMU(), adapter=Bounded(rank=2), {SETTINGS}",
    ],
)
def test_a_run_that_goes_on_equals_one_that_never_stopped_to_the_bit(settings: str, tmp_path: Path):
    method = f"Finetune({settings})"
    whole, again = Watcher(), Watcher()
    straight = weights(run(method, whole))
    saved = cut(method, tmp_path)
    torch.manual_seed(6)
    resumed = weights(run(method, again, saved))
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    assert again.lines() == whole.lines()  # those of the steps before the cut, too


@dataclass(frozen=True)
class Drawing(Objective):
    """A loss as somebody may bring it: each step draws how much each row of the forget set counts."""

    needs = ("forget",)
    intention = "removal"

    def __call__(self, now: View, before: View) -> torch.Tensor:
        said = now.forget
        return said.over_rows(said.log_prob() * torch.rand(len(said.labels)))


def test_what_an_objective_draws_by_lot_goes_on_too(tmp_path: Path):
    """No loss of ours draws after the start; one that does is seeded by the run, and a run that goes on is the same."""
    method = replace(parse(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"), objective=Drawing())
    straight = weights(method(tiny(), REQUEST))
    with pytest.raises(CutOffError), keep_checkpoints(Checkpoints(tmp_path, every=2)):
        method(tiny(), REQUEST, Watcher(9))
    with keep_checkpoints(Checkpoints(tmp_path, every=2, resume=True)):
        resumed = weights(method(tiny(), REQUEST))
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())


def test_the_newest_two_are_kept_and_nothing_else(tmp_path: Path):
    cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path, last=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000006", "step-000008"]


def test_a_checkpoint_holds_tensors_in_safetensors_and_the_rest_in_json(tmp_path: Path):
    """No pickle: each file is one of the two by its content, and the manifest knows it."""
    cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path)
    folder = tmp_path / "step-000008"
    manifest = check_manifest(folder)
    assert manifest["step"] == 8
    tensors = {}
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        else:
            json.loads(path.read_text(encoding="utf-8"))
    kinds = {name.split(".")[0] for name in tensors}
    assert kinds == {"now", "best", "mean", "square", "direction", "rng"}
    # two blocks of three layers, A and B of each, in four kinds; a direction for each layer; the generator
    assert len(tensors) == 2 * 3 * 2 * 4 + 2 * 3 + 1


@pytest.mark.parametrize("differs", ["method", "model", "data"])
def test_another_run_s_checkpoint_is_refused_by_what_differs(tmp_path: Path, differs: str):  # C07
    method = parse(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})")
    saved = cut(repr(method), tmp_path)
    network, request = tiny(), REQUEST
    if differs == "method":
        method = replace(method, learning_rate=0.002)
    elif differs == "model":
        network = tiny(seed=1)
    else:  # the same records in another order, which the draw depends on
        request = replace(REQUEST, retain=REQUEST.retain[::-1])
    with (
        keep_checkpoints(saved),
        pytest.raises(ModelRefused, match=f"is of another run: its {differs} differs\\. Give"),
    ):
        method(network, request, Watcher())
    with pytest.raises(ModelRefused, match=f"is of another run: its {differs} differs\\. Give"):
        saved.compare(method, network, request)  # what a command asks before its first audit
    with pytest.raises(ModelRefused, match="its method and its model and its data differ\\. Give"):
        saved.compare(replace(method, batch=1), tiny(seed=2), replace(REQUEST, retain=REQUEST.retain[:3]))
    assert saved.compare(parse(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"), tiny(), REQUEST) is None


@pytest.mark.parametrize("around", ["OwnWords(learn={})", "Train(learning_rate=0.001, epochs=5.0, batch=2)"])
def test_a_method_around_another_goes_on_from_what_that_one_wrote(around: str, tmp_path: Path):
    method = around.format(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})")
    straight = weights(run(method, Watcher()))
    saved = cut(method, tmp_path)
    assert saved.compare(parse(method), tiny(), REQUEST) is None  # that one compares, as it starts
    resumed = weights(run(method, Watcher(), saved))
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    with pytest.raises(ModelRefused, match="is of another run: its method differs"):
        run(method.replace("0.001", "0.002"), Watcher(), saved)


def test_going_on_from_nothing_and_beginning_over_a_checkpoint_are_refused(tmp_path: Path):  # C08
    with pytest.raises(UsageRefused, match="has no checkpoint to resume from"):
        Checkpoints(tmp_path, resume=True).check()
    cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path)
    with pytest.raises(UsageRefused, match="holds checkpoints of a run that did not end"):
        Checkpoints(tmp_path).check()
    Checkpoints(tmp_path, resume=True).check()


def test_a_run_that_fails_leaves_the_checkpoints_from_before(tmp_path: Path):
    method = f"Finetune(objective=GradDiff(), adapter=LoRA(rank=2), {SETTINGS})"
    saved = cut(method, tmp_path, last=5)
    broken = tiny()
    broken.module.lm_head.weight.data[0, 0] = torch.nan
    with pytest.raises((ModelRefused, RunFailed)), keep_checkpoints(saved):
        parse(method)(broken, REQUEST, Watcher())
    assert [path.name for path in saved.steps()] == ["step-000004", "step-000002"]
