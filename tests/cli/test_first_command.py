"""A newcomer's first command has a model and what it is to forget, and nothing else."""

from pathlib import Path

from expunge.report.report import Report
from tests.cli.commands import METHOD, Files

QUICK = ["--audits=Loss", "--no-added-probes"]


def test_the_first_command_of_a_newcomer_runs_and_says_what_it_lacks(
    expunge, model: Path, files: Files, tmp_path: Path
):
    said = expunge("forget", model, "--forget", files.forget, "--method", METHOD, "--out", tmp_path / "out", *QUICK)
    assert said.code in (0, 6), said.err
    assert "of the model's own answers to plain questions stand for it" in " ".join(said.err.split())
    report = Report.read(tmp_path / "out")
    assert report.request.sets["retain"].source == "added by expunge"
    assert any(line.startswith("No retain set was given: the model's own answers") for line in report.limits)
    alone = expunge("audit", model, "--forget", files.forget, "--out", tmp_path / "audit", QUICK[0])
    assert alone.code in (0, 6), alone.err
    assert Report.read(tmp_path / "audit").request.fingerprint == report.request.fingerprint
