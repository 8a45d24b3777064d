"""Signals, full disks and other hands, while checkpoints are written and after."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.events import Event, Note, Step
from expunge.notation.parse import parse
from expunge.runtime.atomic_files import check_manifest, write_manifest
from expunge.train.checkpoint import Checkpoints
from tests.train.cut_runs import REQUEST, SETTINGS, CutOffError, Watcher, cut, run, tiny, weights

torch.set_num_threads(1)


def test_a_torn_checkpoint_is_passed_over_and_named(tmp_path: Path):  # S05, S06
    method = f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"
    straight, again = weights(parse(method)(tiny(), REQUEST)), Watcher()
    saved = cut(method, tmp_path)
    [shard] = (tmp_path / "step-000008").glob("*.safetensors")
    torn = bytearray(shard.read_bytes())
    torn[-1] ^= 1
    shard.write_bytes(bytes(torn))
    resumed = weights(run(method, again, saved))
    assert all(torch.equal(resumed[name], weight) for name, weight in straight.items())
    [told] = [event.what for event in again if isinstance(event, Note)]
    assert f"{shard} is not the file that was written" in told
    torn_name = [path.name.split("-")[:2] for path in tmp_path.iterdir() if "torn" in path.name]
    assert torn_name == [["step", "000008.torn"]]  # put aside, not removed


def test_a_checkpoint_without_its_optimizer_is_none(tmp_path: Path):
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path)
    for folder in tmp_path.iterdir():
        (folder / "state.json").unlink()
    with pytest.raises(ModelRefused, match="No checkpoint in .* is complete"):
        run(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", Watcher(), saved)


# Signals, disks and hands in the middle of it


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), EnvironmentRefused),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), EnvironmentRefused),
    ],
)
def test_what_strikes_while_a_checkpoint_is_written_comes_out_as_it_is(
    error: BaseException, shown: type[BaseException], tmp_path: Path, monkeypatch
):  # R12, S02, S03
    method = f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"
    saved = Checkpoints(tmp_path / "saved", every=2)

    def strike(*_: object, **__: object) -> None:
        raise error

    def begin(event: Event) -> None:
        if isinstance(event, Step) and event.step == 4:
            monkeypatch.setattr("safetensors.torch.save", strike)
            monkeypatch.setattr("torch.distributed.checkpoint.hf_storage.save", strike, raising=False)
            monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", strike)

    with pytest.raises(shown):
        run(method, begin, saved)
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["step-000002"]  # the one before, and no scratch
    check_manifest(saved.steps()[0])
    monkeypatch.undo()
    network, straight = run(method, Watcher(), replace(saved, resume=True)), run(method, Watcher())
    assert all(torch.equal(a, b) for a, b in zip(weights(network).values(), weights(straight).values(), strict=True))


def test_files_of_others_among_the_checkpoints_are_left_alone(tmp_path: Path):
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path, last=5)
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "step-by-step").mkdir()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "step-000009").write_text("a file")
    (tmp_path / "step-000001.torn-5").mkdir()  # ours
    assert [path.name for path in saved.steps()] == ["step-000004", "step-000002"]
    saved.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "step-000009", "step-1", "step-by-step"]


def test_a_checkpoint_that_is_half_removed_has_no_name_any_more(tmp_path: Path, monkeypatch):
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path, last=5)

    def kill(path: Path) -> None:  # in the middle of it
        next(path.iterdir()).unlink()
        raise CutOffError

    monkeypatch.setattr("expunge.train.checkpoint.remove", kill)
    with pytest.raises(CutOffError):
        saved.remove()
    monkeypatch.undo()
    assert [path.name for path in saved.steps()] == ["step-000002"]
    check_manifest(saved.steps()[0])
    Checkpoints(tmp_path, resume=True).check()  # sweeps what is left
    assert [path.name for path in tmp_path.iterdir()] == ["step-000002"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("keeper", None),
        ("keeper", {}),
        ("keeper", {"best": "x", "best_step": 1, "best_losses": [], "retain_at_start": 0, "forget_at_start": 0}),
        ("events", [{"kind": "step"}]),
        ("events", 7),
        ("reads", {"now": ["elsewhere"], "before": []}),
        ("reads", []),
        ("parts", [[1]]),
        ("parts", "x"),
        ("memory", 3),
        (None, []),
        (None, "text"),
    ],
)
def test_a_checkpoint_that_somebody_wrote_is_refused_whole(place: str | None, value: object, tmp_path: Path):
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path, last=5)
    newest = saved.steps()[0]
    state = json.loads((newest / "state.json").read_text())
    (newest / "state.json").write_text(json.dumps(value if place is None else {**state, place: value}))
    facts = check_manifest(newest, lambda name: False)
    write_manifest(newest, **{key: facts[key] for key in ("step", "processes", "run")})
    with pytest.raises(ModelRefused, match="does not hold the state of this run"):
        run(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", Watcher(), replace(saved, resume=True))


@pytest.mark.parametrize("change", ["shape", "type", "missing", "rng"])
def test_a_checkpoint_with_other_tensors_is_refused(change: str, tmp_path: Path):
    saved = cut(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", tmp_path, last=5)
    newest = saved.steps()[0]
    [file] = newest.glob("*.safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    name = next(iter(sorted(tensors))) if change != "rng" else "rng"
    tensors |= {
        "shape": {name: tensors[name][:1].clone()},
        "type": {name: tensors[name].to(torch.int64)},
        "missing": {},
        "rng": {name: tensors[name] * 0},
    }[change]
    if change == "missing":
        del tensors[name]
    save_file(tensors, file, metadata)
    facts = check_manifest(newest, lambda name: False)
    write_manifest(newest, **{key: facts[key] for key in ("step", "processes", "run")})
    with pytest.raises(ModelRefused, match="does not hold the state of this run"):
        run(f"Finetune(adapter=Bounded(rank=2), {SETTINGS})", Watcher(), replace(saved, resume=True))
