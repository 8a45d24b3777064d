"""What a training will cost, held against one that runs; and how the command is asked."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from expunge.cli.main import app
from expunge.cli.plan_table import plan_training
from expunge.errors import DataRefused, EnvironmentRefused, UsageRefused
from expunge.events import Note
from expunge.plan.machine import Machine
from expunge.run.train import Material, TrainJob, train
from tests.plan.plans import CANARY

METHOD = "Train(epochs=2.0, batch=4)"


def lesson(model: Path, files: dict[str, Path], out: Path, method: str = METHOD) -> TrainJob:
    return TrainJob(str(model), Material((files["forget"], files["retain"]), (files["forget"],)), out, method)


def test_steps_tokens_and_bytes_are_those_of_the_run(model: Path, files: dict[str, Path], tmp_path: Path):
    told: list[str] = []
    job = lesson(model, files, tmp_path / "out")
    made = plan_training(job, Machine(memory=1e12), lambda e: told.append(e.what) if isinstance(e, Note) else None)
    assert not (tmp_path / "out").exists()
    assert "10 records are left out, as --without says; 10 are learnt" in told
    ran = train(job, lambda event: None)
    assert made.rehearsal.steps == ran.steps == 5  # 2 epochs of 10 records in fours
    assert made.tokens["of the examples"] == ran.cost.tokens
    written = (tmp_path / "out" / "model" / "model.safetensors").stat().st_size
    assert made.disk["model"] == pytest.approx(written, rel=0.02)


def test_a_low_rank_training_moves_and_holds_less(model: Path, files: dict[str, Path], tmp_path: Path):
    full, lora = (
        plan_training(lesson(model, files, tmp_path / "out", method), Machine(memory=1e12))
        for method in (METHOD, METHOD.replace("(", "(adapter=LoRA(rank=2), ", 1))
    )
    assert lora.costs[1] < full.costs[1] / 4
    assert lora.phases["forget"]["state"] < full.phases["forget"]["state"] / 4
    assert lora.disk["adapter"] > 0 == full.disk["adapter"]


def test_what_does_not_fit_is_refused_with_what_would(model: Path, files: dict[str, Path], tmp_path: Path):
    with pytest.raises(EnvironmentRefused, match="The run needs .* GB of memory on each device"):
        plan_training(lesson(model, files, tmp_path / "out"), Machine("cuda", memory=1e3, dtype="float32"))
    other = replace(lesson(model, files, tmp_path / "out"), material=Material((files["retain"],), (files["forget"],)))
    with pytest.raises(DataRefused, match="none of its 10 records is among the 10"):
        plan_training(other, Machine(memory=1e12))


def test_the_command_plans_a_training_and_writes_nothing(model: Path, files: dict[str, Path], tmp_path: Path, capsys):
    def expunge(*arguments: object) -> None:
        typer.main.get_command(app)([str(each) for each in arguments], standalone_mode=False)

    asked = [model, f"--data={files['retain']}", "--method", METHOD, "--out", tmp_path / "out", "--json"]
    expunge("plan", *asked, "--device=cuda", "--device-memory=80", "--rate=100")
    said = capsys.readouterr()
    planned = json.loads(said.out)
    assert (planned["steps"], planned["fits"]) == (5, True)
    assert [*planned["memory"]["phases"]] == ["train", "merge"]
    assert not [name for part in ("tokens", "flops", "seconds") for name in planned[part] if "audit" in name]
    assert CANARY not in said.out + said.err
    with pytest.raises(UsageRefused, match="--device-memory"):  # of a device that is not here nothing is known
        expunge("train", *asked, "--dry-run", "--device=cuda")
    with pytest.raises(UsageRefused, match="Give --data FILE, to plan `train`, or --forget FILE"):
        expunge("plan", model, f"--data={files['retain']}", f"--forget={files['forget']}")
    assert list(tmp_path.iterdir()) == []
