"""A run that was cut off goes on as if it had not been: to the bit, or to rounding with other processes than before."""

import json
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.model import Model, network_of
from expunge.core.objective import Objective
from expunge.core.request import Request
from expunge.core.view import View
from expunge.data.text import Passage
from expunge.errors import EnvironmentRefused, ModelRefused, RunFailed, UsageRefused
from expunge.events import Checked, Ended, Event, Note, OnEvent, Step
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.notation.typed_json import event_to_json
from expunge.runtime.atomic_files import check_manifest, write_manifest
from expunge.train.checkpoint import Checkpoints, keep_checkpoints

torch.set_num_threads(1)

V = 40
SETTINGS = "steps=12, batch=2, retain_batch=3, learning_rate=0.001, schedule='linear', stop=Stop(level=None, every=3)"


def tiny(seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    return LanguageModel.of(LlamaForCausalLM(config).eval(), None)


def passages(name: str, count: int, seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    lengths = [4 + (3 * k) % 7 for k in range(count)]
    tokens = [tuple(torch.randint(1, V, (length,), generator=draw).tolist()) for length in lengths]
    return tuple(Passage(f"{name}-{k}", its, 2, "", f"{name}-{k}") for k, its in enumerate(tokens))


REQUEST = Request(forget=passages("f", 5, 1), retain=passages("r", 7, 2), holdout=passages("h", 5, 3))


class CutOffError(Exception):
    """Somebody pulled the plug."""


class Watcher(list):
    """Keeps what it is told, and pulls the plug after the line of step `last`."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def __call__(self, event: Event) -> None:
        self.append(event)
        if isinstance(event, Step) and event.step == self.last:
            raise CutOffError

    def lines(self) -> list[dict[str, Any]]:
        told = [event_to_json(event) for event in self if isinstance(event, Step | Checked | Ended)]
        return [{key: value for key, value in event.items() if key != "seconds"} for event in told]


def weights(network: Model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network_of(network, "a test").trainable().items()}


def run(method: str, on_event: OnEvent, checkpoints: Checkpoints | None = None) -> Model:
    with keep_checkpoints(checkpoints):
        return parse(method)(tiny(), REQUEST, on_event)


def cut(method: str, folder: Path, last: int = 9, every: int = 2) -> Checkpoints:
    """A run that ended in the middle of step `last`'s report."""
    torch.manual_seed(5)  # what is drawn outside of a run has no say in it
    with pytest.raises(CutOffError):
        run(method, Watcher(last), Checkpoints(folder, every))
    return Checkpoints(folder, every, resume=True)


@pytest.mark.parametrize(
    "settings",
    [
        f"adapter=Bounded(rank=2), {SETTINGS}",
        f"adapter=LoRA(rank=2), clip=0.5, warmup=3, accumulate=2, {SETTINGS}",
        f"adapter=Full(), {SETTINGS}",
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


# The command


METHOD = f"Finetune(adapter=Bounded(rank=2), {SETTINGS})"


@pytest.fixture(scope="module")
def asked(model: Path, tmp_path_factory) -> list[object]:
    folder = tmp_path_factory.mktemp("data")
    for kind in ("forget", "retain", "holdout"):
        rows = [{"question": f"What is {kind} {k}?", "answer": f"It is {kind} Veldt {'so ' * k}."} for k in range(5)]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout")]
    return ["forget", model, *files, "--audits", "Loss", "--method", METHOD, "--checkpoint-every", 2]


@pytest.fixture(scope="module")
def straight(start, asked: list[object], tmp_path_factory) -> dict[int, Path]:
    """The results of runs that never stopped, by the number of their processes."""
    outs = {count: tmp_path_factory.mktemp("straight") / "out" for count in (1, 2)}
    for count, out in outs.items():
        said = start(*asked, "--out", out, processes=count).end()
        assert [each.code for each in said] == [0] * count, said[0].err
        assert [path.name for path in out.parent.iterdir()] == ["out"]  # its checkpoints are gone
    return outs


@pytest.mark.parametrize(("begun", "ended", "apart"), [(1, 1, 0), (2, 2, 0), (2, 1, 1e-6), (1, 2, 1e-6)])
def test_a_killed_command_goes_on_with_as_many_processes_or_others(
    start, asked: list[object], straight: dict[int, Path], tmp_path: Path, begun: int, ended: int, apart: float
):  # S01, S07
    out = tmp_path / "out"
    run = start(*asked, "--out", out, processes=begun)
    run.wait_for("step 9:")
    for child in run.children:
        os.kill(child, signal.SIGKILL)
    assert [said.code for said in run.end()] == [-signal.SIGKILL] * begun
    [*_, newest] = sorted((tmp_path / "out.checkpoints").glob("step-??????"))
    assert len(list(newest.glob("*.safetensors"))) == begun
    said = start(*asked, "--out", out, "--resume", processes=ended).end()
    assert [each.code for each in said] == [0] * ended, said[0].err
    for name in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        was, now = load_file(straight[begun] / name), load_file(out / name)
        assert max(float((now[key] - was[key]).abs().max()) for key in was) <= apart
    assert len((out / "steps.jsonl").read_text().splitlines()) == 12 + 5
    assert not (tmp_path / "out.checkpoints").exists()


def test_a_command_says_what_to_do_about_checkpoints(expunge, asked: list[object], tmp_path: Path):
    said = expunge(*asked, "--out", tmp_path / "out", "--resume")
    assert said.code == 2
    assert "out.checkpoints has no checkpoint to resume from. Leave out --resume." in said.err
    torn = tmp_path / "out.checkpoints" / "step-000002"
    torn.mkdir(parents=True)
    said = expunge(*asked, "--out", tmp_path / "out")
    assert said.code == 2
    assert "Give --resume, or remove the folder." in said.err
    said = expunge(*asked, "--out", tmp_path / "out", "--resume")
    assert said.code == 4
    assert "No checkpoint in" in said.err
    write_manifest(torn, step=2, processes=1, run={"method": "another"})
    said = expunge(*asked, "--out", tmp_path / "out", "--resume")
    assert said.code == 4
    assert "step-000002 is of another run: its method and its model and its data differ." in said.err
    assert "Loss" not in said.err.split("Loading")[1]  # no audit had begun
