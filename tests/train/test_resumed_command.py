"""A killed command goes on: to the bit, or to rounding with other processes than before."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.runtime.atomic_files import write_manifest
from tests.train.cut_runs import METHOD

torch.set_num_threads(1)


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
