"""Runs that fail or are ended: what they say, and what they leave."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.runtime.atomic_files import folder_digest
from tests.cli.commands import CANARY, METHOD, Done, Files, below, refused


def test_a_run_that_makes_nan_stops_before_the_step_and_keeps_the_last_good_adapter(
    expunge, model: Path, files: Files, tmp_path: Path
):  # R01, V13
    settings = "adapter=LoRA(rank=2), learning_rate=1e30, steps=8, batch=2, stop=Stop(level=None)"
    method = f"Finetune(objective=GradDiff(), {settings})"
    digest = folder_digest(model)
    said = expunge("forget", model, *files.options, "--method", method, "--out", tmp_path / "out")
    line = refused(said, 5, "run")
    assert "step 2: the term Ascent() is NaN or infinite (records forget: forget" in line
    assert "retain: retain" in line
    assert "The step was not applied. Lower learning_rate, or set clip." in line
    kept = tmp_path / "out.failed"
    assert f"The last good adapter and the steps are in {kept}." in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.failed"]
    assert below(kept) == ["adapter", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "steps.jsonl"]
    weights = load_file(kept / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    events = [json.loads(told) for told in (kept / "steps.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1]
    assert all(CANARY.encode() not in path.read_bytes() for path in kept.rglob("*") if path.is_file())
    assert folder_digest(model) == digest


def test_an_objective_without_its_set_is_refused_and_leaves_nothing(expunge, model: Path, files: Files, tmp_path: Path):
    method = "Finetune(objective=Ascent() + DPO(), steps=1)"
    said = expunge("forget", model, f"--forget={files.forget}", "--method", method, "--out", tmp_path / "out")
    line = refused(said, 3, "data")
    assert "the stand-in set" in line
    assert below(tmp_path) == []


def test_an_interrupted_run_ends_with_130_and_leaves_nothing(start, model: Path, files: Files, tmp_path: Path):  # R12
    method = (
        "Finetune(adapter=LoRA(rank=2), learning_rate=1e-9, steps=100000, "
        "stop=Stop(level=None, max_retain_increase=None, every=2))"
    )
    asked = ["forget", model, *files.options, "--method", method, "--out", tmp_path / "out", "--checkpoint-every", "0"]
    run = start(*asked)
    run.wait_for("step 4:")
    [child] = run.children
    os.kill(child, signal.SIGINT)
    [said] = run.end()
    assert said.code == 130, said.err
    assert said.err.endswith("expunge: interrupted; no result was written.\n")
    assert "Traceback" not in said.err
    assert below(tmp_path) == []


NARROW = """
import pytest
import torch
from expunge.cli import main as cli
from torch import nn

whole = nn.Embedding.forward


def forward(self, tokens):
    if tokens.numel() > {room}:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return whole(self, tokens)


nn.Embedding.forward = forward
cli.main()
"""


def test_a_run_that_outgrows_its_memory_goes_on_in_parts_and_its_report_says_so(
    expunge, model: Path, files: Files, done: Done, tmp_path: Path
):  # R04
    program = tmp_path / "narrow.py"
    program.write_text(NARROW.format(room=250))
    sets = [*files.options, f"--stand-in={files.stand_in}", f"--probe=para={files.probe}"]
    out = tmp_path / "out"
    said = expunge("forget", model, *sets, "--method", METHOD, "--out", out, "--seed", 3, program=str(program))
    assert said.code == done.code, said.err
    assert "Out of memory on cpu: " in said.err
    assert "out of memory, so steps have" in said.err
    report = json.loads((out / "report.json").read_text())
    assert report["run"]["parts"] > 1
    one, other = (
        {(f["audit"], f["set"], f["model"]): f["value"] for f in r["findings"]} for r in (report, done.report)
    )
    assert one == pytest.approx(other, abs=1e-3)


def test_where_one_record_is_too_large_a_run_ends_with_7(expunge, model: Path, files: Files, tmp_path: Path):  # R04
    program = tmp_path / "narrow.py"
    program.write_text(NARROW.format(room=75))
    said = expunge("audit", model, *files.options, "--audits=Loss", "--out", tmp_path / "out", program=str(program))
    assert "Out of memory on cpu with record " in refused(said, 7, "environment")
    assert not (tmp_path / "out").exists()


FULL = """
import resource
from expunge.cli import main as cli

resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, resource.RLIM_INFINITY))
cli.main()
"""


@pytest.mark.parametrize(("every", "most"), [(2, 20_000), (0, 60_000)], ids=["checkpoint", "model"])
def test_a_disk_that_fills_up_ends_a_run_with_7_and_nothing_half_written(
    every: int, most: int, expunge, model: Path, files: Files, tmp_path: Path
):  # S03
    program = tmp_path / "full.py"
    program.write_text(FULL.format(most=most))
    asked = ["forget", model, *files.options, "--method", METHOD, "--audits=Loss", "--checkpoint-every", every]
    said = expunge(*asked, "--out", tmp_path / "out", program=str(program))
    assert "is full (" in refused(said, 7, "environment")
    assert below(tmp_path) == ["full.py"] + ["out.checkpoints"] * (every > 0)  # empty: the first was not whole
