"""Sweeps from Python: every run a folder, none made twice, the order told by a rule."""

import shutil
from functools import partial
from pathlib import Path

import pytest

import expunge
from expunge import Report
from expunge.errors import UsageRefused
from expunge.events import Note
from expunge.report.sweep import NEAREST
from tests.families import llama, text_request

sweep = partial(expunge.sweep, added_probes=False)
METHOD = "Finetune(objective=Ascent(), adapter=Bounded(rank=2), steps=2, batch=4, stop=None)"
AUDITS = "Loss, Choice"
OVER = {"learning_rate": [1e-5, 0.3]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("swept") / "out"
    return out, sweep(llama(), text_request(), METHOD, OVER, AUDITS, out=out, seeds=(3,))


def test_every_setting_runs_with_every_seed_and_the_rule_orders_them(made):
    out, told = made
    assert {path.name for path in out.iterdir()} == {"sweep.json", *(run.folder for run in told.runs)}
    assert {(run.settings["learning_rate"], run.seed) for run in told.runs} == {
        ("1e-05", 3),
        ("0.3", 3),
    }
    assert [run.place for run in told.runs] == [1, 2]
    assert told.best == told.runs[0]
    assert [run.validation.harm > 0 for run in told.runs] == [False, True]  # a step of 0.3 is far
    assert told.best.settings == {"learning_rate": "1e-05"}
    assert told.rule == NEAREST
    assert told.records["forget"] == (3, 3)
    report = Report.read(out / told.best.folder)
    assert "learning_rate=1e-05" in report.method
    assert "seed=3" in report.method
    loss = next(number for number in told.best.numbers if (number.set, number.audit) == ("forget", "Loss"))
    assert (loss.validation + loss.test) / 2 == pytest.approx(report.find("forget.Loss").value, abs=1e-5)


def test_a_sweep_that_was_cut_off_goes_on_and_no_run_is_made_twice(made, tmp_path: Path):
    out, told = made
    mine = Path(shutil.copytree(out, tmp_path / "out"))
    (mine / "sweep.json").unlink()
    shutil.rmtree(mine / "learning_rate=0.3_seed-3")
    before = {path: path.stat().st_mtime_ns for path in mine.rglob("*") if path.is_file()}
    notes: list[str] = []
    again = sweep(
        llama(),
        text_request(),
        METHOD,
        OVER,
        AUDITS,
        out=mine,
        seeds=(3,),
        on_event=lambda event: notes.append(event.what) if isinstance(event, Note) else None,
    )
    assert again.runs == told.runs
    assert notes.count("Auditing the model after") == 1
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    for request, audits in ((text_request(5), AUDITS), (text_request(), "Loss")):
        with pytest.raises(UsageRefused, match="is of another method, model, request or audits"):
            sweep(llama(), request, METHOD, OVER, audits, out=mine, seeds=(3,))


def test_another_rule_ranks_the_same_runs(made):
    out, told = made
    losses = sweep(llama(), text_request(), METHOD, OVER, AUDITS, out=out, seeds=(3,), by="retain.Loss")
    assert losses.rule.startswith("By retain.Loss:")
    found = [run.validation.by for run in losses.runs]
    assert {run.folder for run in losses.runs} == {run.folder for run in told.runs}
    assert found[0] < found[1]
    for wrong, said in (
        ("retain.Loss <= 3", "--by"),
        ("elsewhere.Loss", "there is no set"),
        ("forget.F1", "is not run"),
    ):
        with pytest.raises(UsageRefused, match=said):
            sweep(llama(), text_request(), METHOD, OVER, AUDITS, out=out, seeds=(3,), by=wrong)
