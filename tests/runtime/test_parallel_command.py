"""The command in two processes: what it writes is what one writes, and they end together, with one line.

On processes that die while others wait, see test_lost.py.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
HOLDS = ["whole", "cut"]
CLI = "Finetune(adapter=Bounded(rank=2), learning_rate=0.003, steps=4, batch=3, stop=Stop(level=None, every=2))"
ENDLESS = (
    "Finetune(adapter=LoRA(rank=2), learning_rate=1e-9, steps=100000, "
    "stop=Stop(level=None, max_retain_increase=None, every=2))"
)


class Said(Protocol):
    """What a process left."""

    code: int
    err: str


def torchrun(*command: object) -> list[str]:
    """The command line that starts `command` in two processes, over the loopback alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2]
    return [*map(str, (*launcher, "--master-addr", "127.0.0.1", "--master-port", port, *command))]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
    "EXPUNGE_CACHE": "off",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    for kind in ("forget", "retain", "holdout"):
        rows = [
            {"id": f"{kind}{k}", "question": f"What is {kind} {k}?", "answer": f"It is {kind} Veldt {'so ' * k}."}
            for k in range(5)
        ]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout")]


def test_the_command_writes_what_one_process_writes(expunge, model: Path, files: list[str], tmp_path: Path):
    asked = ["forget", model, *files, "--audits", "Loss, Rouge, LossMembership", "--method", CLI]
    alone = expunge(*asked, "--no-added-probes", "--out", tmp_path / "one")
    assert alone.code == 0, alone.err
    command = torchrun("-m", "expunge", *asked, "--no-added-probes", "--out", tmp_path / "two")
    said = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    assert said.stdout.replace("two/", "one/") == alone.out  # once, and the same table
    assert said.stderr.count("Merging and saving") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]  # no lock, no scratch, no checkpoint
    one, two = tmp_path / "one", tmp_path / "two"
    names = [sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) for folder in (one, two)]
    assert names[0] == names[1]
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        was, now = load_file(one / name), load_file(two / name)
        assert set(was) == set(now)
        for key, tensor in was.items():
            torch.testing.assert_close(now[key], tensor, rtol=0, atol=1e-5)
    assert scores(one) == pytest.approx(scores(two), abs=1e-5)
    assert len((two / "steps.jsonl").read_text().splitlines()) == 4 + 3


AUDITS = "Loss, ExactMatch, MinK, Rouge(max_new_tokens=12), LinearProbe"


def scores(folder: Path) -> list[float]:
    """The scores of all examples by all audits."""
    report = json.loads((folder / "report.json").read_text())
    return [score for finding in report["findings"] for score in finding["scores"]]


@pytest.mark.parametrize("hold", HOLDS)
def test_an_audit_is_shared_and_its_verdict_is_that_of_all(
    start, model: Path, files: list[str], tmp_path: Path, hold: str
):
    asked = ["audit", model, *files, "--audits", AUDITS, "--require", "forget.Loss >= 99"]
    [alone] = start(*asked, "--out", tmp_path / "one").end()
    said = start(*asked, "--out", tmp_path / "two", "--hold", hold, processes=2).end()
    assert [each.code for each in (alone, *said)] == [6, 6, 6]
    assert "Auditing" in said[0].err
    assert not said[1].out
    assert "Auditing" not in said[1].err
    assert said[0].out.replace("two/", "one/") == alone.out
    assert scores(tmp_path / "one") == pytest.approx(scores(tmp_path / "two"), abs=1e-5)


def test_a_model_that_no_process_holds_whole_forgets_as_one_does(start, model: Path, files: list[str], tmp_path: Path):
    asked = ["forget", model, *files, "--method", CLI, "--audits", "Loss, Rouge", "--reference", model, "--hold", "cut"]
    [alone] = start(*asked, "--out", tmp_path / "one").end()
    said = start(*asked, "--out", tmp_path / "two", processes=2).end()
    assert {each.code for each in (alone, *said)} == {alone.code} <= {0, 6}
    assert scores(tmp_path / "two") == pytest.approx(scores(tmp_path / "one"), abs=1e-5)


def refusals(*said: Said) -> list[str]:
    return [line for each in said for line in each.err.splitlines() if line.startswith("expunge: ")]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_process_ends_the_run_with_one_line(start, model: Path, files: list[str], tmp_path: Path, dead: int):
    asked = ["forget", model, *files, "--method", ENDLESS, "--audits", "Loss", "--out", tmp_path / "out"]
    run = start(*asked, "--checkpoint-every", 2, processes=2)  # S08
    run.wait_for("step 4:")
    os.kill(run.children[dead], signal.SIGKILL)
    said = run.end()
    assert [each.code for each in said] == ([-9, 5] if dead == 0 else [5, -9])
    [line] = refusals(*said)
    assert line.startswith(f"expunge: E5-run: Process {1 - dead} of 2 lost another rank")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "out.checkpoints").glob("step-*"))


def test_ctrl_c_ends_all_and_is_said_once(start, model: Path, files: list[str], tmp_path: Path):  # R12
    asked = ["forget", model, *files, "--method", ENDLESS, "--audits", "Loss", "--out", tmp_path / "out"]
    run = start(*asked, "--checkpoint-every", 0, processes=2)
    run.wait_for("step 4:")
    for child in run.children:
        os.kill(child, signal.SIGINT)
    said = run.end()
    assert [each.code for each in said] == [130, 130]
    assert refusals(*said) == ["expunge: interrupted; no result was written."]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_all_is_said_once_and_keeps_the_last_good_adapter(
    start, model: Path, files: list[str], tmp_path: Path
):
    method = "Finetune(objective=GradDiff(), adapter=LoRA(rank=2), learning_rate=1e30, batch=2, stop=Stop(level=None))"
    asked = ["forget", model, *files, "--method", method, "--audits", "Loss", "--out", tmp_path / "out"]
    said = start(*asked, processes=2).end()
    assert [each.code for each in said] == [5, 5]
    [line] = refusals(*said)
    assert line.startswith("expunge: E5-run: step 2: the term Ascent() is NaN or infinite (records forget: forget")
    kept = tmp_path / "out.failed"
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
    weights = load_file(kept / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_refusal_of_all_is_said_once(start, model: Path, files: list[str], tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    said = start("forget", model, *files, "--out", tmp_path / "out", processes=2).end()
    assert [each.code for each in said] == [2, 2]
    assert len(refusals(*said)) == 1
