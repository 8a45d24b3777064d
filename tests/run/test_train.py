"""Training from files: what is learnt, what is left out, what the folder says of it, and who can read it."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import DataRefused, UsageRefused
from expunge.events import Event, Note, Step
from expunge.models.open import open_model
from expunge.report.training import Training
from expunge.run.train import Material, TrainJob, train
from expunge.runtime.atomic_files import write_manifest
from tests.cli.commands import CANARY, rows, write


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    return {
        kind: write(root / f"{kind}.jsonl", rows(kind, CANARY * (kind == "forget"))) for kind in ("forget", "retain")
    }


QUICK = "Train(learning_rate=1e-2, epochs=2.0, batch=4)"


def job(model: Path, out: Path, *data: Path, without: tuple[Path, ...] = (), **options) -> TrainJob:
    return TrainJob(str(model), Material(data, without), out, **{"method": QUICK, **options})


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_everything_is_learnt_and_the_folder_says_what(model: Path, files: dict, tmp_path: Path):
    told: list[Event] = []
    made = train(job(model, tmp_path / "out", files["forget"], files["retain"]), told.append)
    assert made == Training.read(tmp_path / "out")
    assert (made.data.records, made.data.sources, made.steps) == (12, ("forget.jsonl", "retain.jsonl"), 6)
    assert made.losses[1] < made.losses[0]
    network = open_model(tmp_path / "out")  # the folder stands for the model in it
    assert network.fingerprint() == made.result
    assert made.base.fingerprint == open_model(model).fingerprint()
    steps = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert [(each["kind"], each["forget"]) for each in steps] == [("step", None)] * 6  # nothing is forgotten here
    assert CANARY not in "".join(p.read_text(errors="replace") for p in (tmp_path / "out").iterdir() if p.is_file())
    assert not any(CANARY in event.what for event in told if isinstance(event, Note))
    options = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert options["data"] == [str(files["forget"]), str(files["retain"])]
    assert options["method"] == made.method


def test_what_is_left_out_is_known_by_its_words_and_the_rest_is_what_would_be_learnt_alone(
    model: Path,
    files: dict,
    tmp_path: Path,
):
    """Ids, order and spaces differ; two of the records that are to be left out are not there."""
    rest = write(tmp_path / "rest.jsonl", rows("retain"))
    again = [{**row, "id": f"x{k}", "question": f" {row['question']} "} for k, row in enumerate(rows("forget", CANARY))]
    gone = write(tmp_path / "gone.jsonl", [*again[::-1], *rows("other")[:2]])
    told: list[Event] = []
    made = train(job(model, tmp_path / "a", files["forget"], files["retain"], without=(gone,)), told.append)
    assert (made.data.records, made.data.left_out, made.data.not_found) == (6, 6, 2)
    said = [event.what for event in told if isinstance(event, Note)]
    assert "6 records are left out, as --without says; 6 are learnt" in said
    assert "Warning: 2 records of --without are not among the data" in said
    alone = train(job(model, tmp_path / "b", rest), lambda _: None)
    assert alone.data.digest == made.data.digest
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_near_copy_of_what_is_left_out_is_told_of(model: Path, files: dict, tmp_path: Path):
    near = [{**row, "id": f"near{row['id']}", "answer": row["answer"].rstrip(".")} for row in rows("forget", CANARY)]
    data = write(tmp_path / "data.jsonl", [*rows("forget", CANARY), *near, *rows("retain")])
    told: list[Event] = []
    train(job(model, tmp_path / "out", files["forget"], data, without=(files["forget"],)), told.append)
    said = [event.what for event in told if isinstance(event, Note)]
    assert "Warning: 6 records that are learnt nearly repeat one that is left out" in said


@pytest.mark.parametrize(
    ("data", "without", "said"),
    [
        ("retain", "forget", "none of its 6 records is among the 6 of the data"),
        ("forget", "forget", "leaves out every"),
    ],
)
def test_leaving_out_nothing_or_everything_is_refused_and_nothing_is_written(
    data: str,
    without: str,
    said: str,
    model: Path,
    files: dict,
    tmp_path: Path,
):
    with pytest.raises(DataRefused, match=said) as refused:
        train(job(model, tmp_path / "out", files[data], without=(files[without],)), lambda _: None)
    assert CANARY not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_method_that_forgets_does_not_train(model: Path, files: dict, tmp_path: Path):
    for method in ("Finetune()", "Finetune(objective=NPO())", "SSD()", "Loss()"):
        with pytest.raises(UsageRefused, match="does not learn the records"):
            train(job(model, tmp_path / "out", files["forget"], method=method), lambda _: None)


def test_a_run_that_was_cut_off_goes_on_to_the_bit(model: Path, files: dict, tmp_path: Path):
    whole = train(job(model, tmp_path / "whole", files["forget"]), lambda _: None)

    def pull_the_plug(event: Event) -> None:
        if isinstance(event, Step) and event.step == 2:
            raise KeyboardInterrupt

    often = job(model, tmp_path / "cut", files["forget"], checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(often, pull_the_plug)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut.checkpoints"}
    made = train(replace(often, resume=True), lambda _: None)
    assert (made.result, made.losses, made.steps) == (whole.result, whole.losses, whole.steps)
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut"}


def test_a_file_of_another_kind_is_no_training_run(tmp_path: Path):
    with pytest.raises(DataRefused, match=r"holds no training\.json"):
        Training.read(tmp_path)
    (tmp_path / "training.json").write_text('{"schema": 1}')
    write_manifest(tmp_path)
    with pytest.raises(DataRefused, match="not of this version"):
        Training.read(tmp_path)
