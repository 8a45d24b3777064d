"""Everything that the command prints is its own: libraries warn and log, and none of it is seen."""

import os
import re
import subprocess
import sys
from pathlib import Path

from expunge.cli.progress import Progress
from expunge.cli.quiet import QUIET, ask_for_quiet
from expunge.report.report import Report
from tests.cli.commands import METHOD, rows, write

NOISY = """
import logging, sys, warnings
import expunge.run.job as job
from expunge.cli.main import main

own = job.open_model

def open_noisily(*given):
    from transformers.utils import logging as theirs
    warnings.simplefilter("always")
    warnings.warn("NOISE of warnings", DeprecationWarning)
    logging.getLogger("another.package").error("NOISE without a handler")
    own_handler = logging.getLogger("some.other")
    own_handler.addHandler(logging.StreamHandler(sys.stderr))
    own_handler.error("NOISE with a handler")
    theirs.get_logger("transformers.models").error("NOISE of transformers")
    return own(*given)

job.open_model = open_noisily
main()
"""
OURS = re.compile(r" *\d+\.\d s  \S.*")


def test_no_line_is_a_library_s(start, model: Path, tmp_path: Path, capsys):
    program = tmp_path / "noisy.py"
    program.write_text(NOISY)
    forget = write(tmp_path / "forget.jsonl", rows("forget"))
    retain = write(tmp_path / "retain.jsonl", rows("retain"))
    asked = (
        "forget",
        model,
        "--forget",
        forget,
        "--retain",
        retain,
        "--method",
        METHOD,
        "--audits=Loss, Rouge(max_new_tokens=4)",
    )
    [said] = start(*asked, "--out", tmp_path / "out", program=str(program)).end()
    assert said.code in (0, 6), said.err
    assert [line for line in said.err.splitlines() if not OURS.fullmatch(line)] == []
    capsys.readouterr()
    Progress().summary(Report.read(tmp_path / "out"), tmp_path / "out")
    assert said.out == capsys.readouterr().out


def test_all_of_it_is_shown_to_who_looks_for_a_fault(start, model: Path, tmp_path: Path, monkeypatch):
    program = tmp_path / "noisy.py"
    program.write_text(f"import os\nos.environ['EXPUNGE_DEBUG'] = '1'\n{NOISY}")
    forget = write(tmp_path / "forget.jsonl", rows("forget"))
    [said] = start("audit", model, f"--forget={forget}", "--out", tmp_path / "out", program=str(program)).end()
    for noise in ("of warnings", "without a handler", "with a handler", "of transformers"):
        assert f"NOISE {noise}" in said.err


def test_bars_are_off_before_a_library_could_be_imported(monkeypatch):
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "INFO")
    ask_for_quiet()
    assert {name: os.environ[name] for name in QUIET} == {**QUIET, "TORCH_CPP_LOG_LEVEL": "INFO"}  # what is set stays
    script = "import sys, expunge.cli.main; assert not {'tqdm', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
