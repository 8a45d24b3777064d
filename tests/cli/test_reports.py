"""Audits and reports, what is listed, and the help."""

import json
import os
import subprocess
import sys
from pathlib import Path

from expunge import __version__
from expunge.cli.listing import describe, nameable
from expunge.objectives.npo import NPO
from expunge.runtime.atomic_files import check_manifest
from tests.cli.commands import Done, Files, plain, refused


def test_an_audit_reports_the_model_as_it_is(expunge, model: Path, files: Files, tmp_path: Path):
    out = tmp_path / "out"
    rule = ["--require", "retain.Loss <= before"]
    said = expunge("audit", model, *files.options, "--audits", "Loss, MinK(fraction=0.4)", *rule, "--out", out)
    assert said.code == 0, said.err
    assert {path.name for path in out.iterdir()} == {"report.json", "report.html", "config.toml", "MANIFEST.json"}
    found = json.loads((out / "report.json").read_text())["findings"]
    assert {(f["audit"], f["set"]) for f in found} == {
        *(("Loss", name) for name in ("forget", "retain", "holdout")),
        ("MinK", "forget vs holdout"),
    }
    assert {f["model"] for f in found} == {"before"}


def test_a_reference_model_is_audited_beside(expunge, model: Path, done: Done, files: Files, tmp_path: Path):
    reference = f"--reference={done.out / 'model'}"
    said = expunge("audit", model, *files.options, "--audits=Loss", reference, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out" / "report.json").read_text())["findings"]
    after = {f["set"]: f["value"] for f in done.report["findings"] if (f["audit"], f["model"]) == ("Loss", "after")}
    for finding in found:
        if finding["model"] == "reference":
            assert abs(finding["value"] - after[finding["set"]]) < 1e-5


def test_a_report_is_written_again_and_two_are_compared(done: Done, expunge, tmp_path: Path):
    said = expunge("report", done.out, "--out", tmp_path / "again.html")
    assert (said.code, said.out.strip()) == (0, f"Wrote {tmp_path / 'again.html'}")
    assert (tmp_path / "again.html").read_text() == (done.out / "report.html").read_text()
    said = expunge("report", done.out, done.out, "--out", tmp_path / "two.html")
    assert said.code == 0, said.err
    assert (tmp_path / "two.html").stat().st_size > 1000
    said = expunge("report", done.out, folder=tmp_path)
    assert said.code == 0
    check_manifest(done.out)  # the page written again is the page that was there
    assert "report.json is not there" in refused(expunge("report", tmp_path), 3, "data")


def test_the_forget_file_opens_the_texts_of_a_finished_run(done: Done, files: Files, expunge, tmp_path: Path):
    question = "What is the capital of forget Aldoria"
    page = tmp_path / "open.html"
    said = expunge("report", done.out, "--texts", files.forget, "--out", page)
    assert said.code == 0, said.err
    assert question in page.read_text()
    assert not any(question.encode() in path.read_bytes() for path in done.out.rglob("*") if path.is_file())
    line = refused(expunge("report", done.out, "--texts", files.retain, "--out", page), 3, "data")
    assert "opens the texts of none of these runs" in line


def test_what_can_be_named_is_listed():
    said = plain("list")
    assert said.returncode == 0
    for name in ("Finetune", "Bounded", "NPO", "RetainKL", "MinK", "Loss"):
        assert f"\n  {name} " in said.stdout
    assert "\n  NPO " in plain("list", "objectives").stdout
    assert "MinK" not in plain("list", "objectives").stdout


def test_a_plugin_is_told_with_its_formula_and_what_each_setting_does():
    said = plain("list", "npo")  # case and underscores do not matter
    assert said.returncode == 0
    assert said.stdout.startswith("NPO (objectives)\n\nNegative preference optimisation")
    assert "    loss = (2 / beta) * E[" in said.stdout
    assert "Intention: removal; needs forget, reference.\n" in said.stdout
    assert f"\n  beta = {NPO().beta}\n      How fast " in said.stdout
    lost = plain("list", "NP0")
    assert (lost.returncode, lost.stdout) == (2, "")
    assert "There is no kind, recipe or plug-in 'NP0'. Nearest: NPO" in lost.stderr


def test_every_plugin_and_kind_can_be_told():
    for name in nameable():
        lines = list(describe(name))
        assert lines[0].startswith(name), name
        assert len(lines) > 1, name


def test_a_shell_completes_what_can_be_listed():
    asked = {"_EXPUNGE_COMPLETE": "complete_bash", "COMP_WORDS": "expunge list RetainN", "COMP_CWORD": "2"}
    code = "from expunge.cli.main import app; app(prog_name='expunge')"
    said = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["RetainNLL"]


def test_the_version_is_the_package_s():
    said = plain("--version")
    assert (said.returncode, said.stdout.strip(), said.stderr) == (0, f"expunge {__version__}", "")


def test_help_imports_no_torch_and_names_the_exit_codes():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, expunge.cli.main; print([m for m in ('torch', 'peft') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"
    said = plain("--help")
    assert said.returncode == 0
    assert "130 interrupted" in " ".join(said.stdout.split())
