"""A plan reads no weight, refuses what would not run in a line, and tells the time where it can."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.cli.plan_table import facts
from expunge.errors import DataRefused
from expunge.plan.machine import Machine
from expunge.plan.pace import _pace, seconds
from expunge.plan.plan import plan
from tests.plan.plans import CANARY, elsewhere, job, options

# Nothing is loaded


def test_a_file_that_ends_with_its_header_is_enough(model, files, planned, tmp_path):
    cut = shutil.copytree(model, tmp_path / "cut")
    weights = cut / "model.safetensors"
    length = int.from_bytes(weights.read_bytes()[:8], "little")
    weights.write_bytes(weights.read_bytes()[: 8 + length])
    whole, without = facts(planned), facts(plan(job(cut, files), elsewhere()))
    whole["model"]["name"] = without["model"]["name"]
    assert without["disk"].pop("free")
    assert whole["disk"].pop("free")
    assert whole == without


def test_a_folder_without_weights_is_enough(model, files, planned, tmp_path):
    bare = shutil.copytree(model, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    made = plan(job(bare, files), elsewhere())
    assert made.paper.parameters == planned.paper.parameters


def test_the_precision_is_that_of_the_files_header(model, files, tmp_path):
    half = shutil.copytree(model, tmp_path / "half")
    weights = half / "model.safetensors"
    raw = weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = raw[8 : 8 + length].replace(b'"F32"', b'"F16"')
    weights.write_bytes(raw[:8] + header)
    machine = replace(elsewhere(), dtype=None)
    assert facts(plan(job(half, files), machine))["machine"]["dtype"] == "float16"


# Refusals


def refused(said, code: int, slug: str) -> str:
    lines = [line for line in said.err.splitlines() if line.startswith("expunge: E")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"expunge: E{code}-{slug}: "), lines[0]
    assert said.code == code
    assert CANARY not in said.err + said.out
    assert "Traceback" not in said.err
    return lines[0]


def test_a_run_that_does_not_fit_is_refused_and_fits_with_the_setting_named(expunge, model, files, tmp_path):
    method = "Finetune(adapter={adapter}, batch=8{more})"
    facts = {}
    for name in ("Full()", "Bounded()"):
        text = method.format(adapter=name, more="")
        # Audits of further texts would need more than either adapter does.
        facts[name] = plan(replace(job(model, files, text), added_probes=False), elsewhere()).peak
    assert facts["Bounded()"] < facts["Full()"]
    room = facts["Full()"] * 0.999
    ask_for = [model, *options(files), "--audits", "Loss", "--device", "cuda", "--dtype", "float32", "--json"]
    ask_for += ["--device-memory", room / 1e9, "--no-added-probes", "--out", tmp_path / "out"]
    line = refused(expunge("plan", *ask_for, "--method", method.format(adapter="Full()", more="")), 7, "environment")
    named = re.search(r"It would fit with (.*)\.$", line)
    assert named, line
    told = named.group(1)
    changed = {
        "adapter=Bounded() in place of Full()": method.format(adapter="Bounded()", more=""),
        "activations='recomputed'": method.format(adapter="Full()", more=", activations='recomputed'"),
        "accumulate=8": method.format(adapter="Full()", more=", accumulate=8"),
    }
    again = expunge("plan", *ask_for, "--method", changed[told])
    assert again.code == 0, again.err
    assert json.loads(again.out)["fits"]
    assert not (tmp_path / "out").exists()


def test_a_machine_that_nothing_fits_into_is_said_to_be_too_small(expunge, model, files, tmp_path):
    machine = ["--device", "cuda", "--device-memory", 1e-6, "--out", tmp_path / "out"]
    line = refused(expunge("plan", model, *options(files), *machine), 7, "environment")
    assert "No setting of the run would make it fit" in line


@pytest.mark.parametrize(
    ("wrong", "code", "slug", "said"),
    [
        (["--dtype", "int3", "--device", "cuda"], 2, "usage", "Allowed: float32"),
        (["--device", "tpu"], 2, "usage", "cpu and cuda"),
        (["--processes", "0"], 2, "usage", "from 1"),
        (["--device-memory", "-1"], 2, "usage", "positive"),
        (["--rate", "0"], 2, "usage", "positive"),
        (["--method", "Finetune(steps=0)"], 2, "usage", "steps must be at least 1"),
        (["--method", "SSD()", "--hold", "cut", "--device", "cuda"], 2, "usage", "SSD works on the whole model"),
        (["--method", "Finetune(adapter=Salient())"], 2, "usage", "Plan with adapter=Full()"),
        (["--method", "Finetune(objective=DPO())"], 3, "data", "the request has none"),
        (["--out", "/"], 2, "usage", "not empty"),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_in_a_line(expunge, model, files, wrong, code, slug, said):
    assert said in refused(expunge("plan", model, *options(files), *wrong), code, slug)


def test_models_that_cannot_be_planned_are_refused(expunge, model, files, tmp_path):
    def told(folder: Path, code: int, slug: str) -> str:
        return refused(expunge("plan", folder, *options(files), "--out", tmp_path / "out"), code, slug)

    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert "could not be loaded" in told(gguf, 4, "model")
    torn = shutil.copytree(model, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "its header is not that of a safetensors file" in told(torn, 4, "model")
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForMaskedLM"]}')
    assert "whose architecture ends in" in told(other, 4, "model")
    (other / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTForImageClassification"]}')
    assert "its image processor could not be loaded" in told(other, 4, "model")
    (other / "config.json").unlink()
    assert "config.json" in told(other, 4, "model")


# Time, and what is printed


def test_time_grows_with_flops_from_what_little_work_takes(request_):
    """5 s, and 2 s for each FLOP: of 1 and of 64 examples, and of the run."""
    made = {size: size for size in (1, 4, 16, 64)}
    assert _pace(1000, made, lambda size: 5.0 + 2.0 * size, float) == 5 + 2 * 1000

    def takes_more_than_four(size: int) -> float:
        if size <= 4:
            raise DataRefused("too few")
        return 5.0 + 2.0 * size

    assert _pace(1000, made, takes_more_than_four, float) == 5 + 2 * 1000


def test_the_machines_own_pace_gives_seconds_for_each_part_of_a_run(expunge, model, files, tmp_path):
    method = "Finetune(steps=4, batch=2, retain_batch=2)"
    arguments = [model, *options(files), "--method", method, "--out", tmp_path / "out"]
    said = expunge("plan", *arguments, "--json")
    assert said.code == 0, said.err
    made = json.loads(said.out)
    parts = ["load", "audit before", "forget", "merge and save", "read back", "audit after"]
    assert list(made["seconds"]) == parts
    assert all(value > 0 for value in made["seconds"].values())
    shown = expunge("plan", *arguments)
    assert shown.code == 0, shown.err
    assert "output matrix" in shown.out
    assert CANARY not in shown.out + shown.err + said.out
    assert not (tmp_path / "out").exists()


def test_an_attack_that_takes_more_examples_than_the_smallest_piece_has_is_timed(model, files):
    method = "Relearn(steps=2, items=3, learn=Finetune(objective=RetainNLL(), adapter=Full(), steps=2))"
    assert seconds(plan(job(model, files, method), Machine()))["forget"] > 0


def test_a_rate_given_turns_flops_into_seconds(model, files):
    made = plan(job(model, files), elsewhere(rate=2e12))
    assert seconds(made) == {"all matrix products": made.flops["total"] / 2e12}


def test_a_machine_that_is_not_here_is_given_no_time(planned):
    assert seconds(planned) == {}
