"""A request, and one finished run that many tests look at."""

import json
from pathlib import Path

import pytest

from expunge.runtime.atomic_files import folder_digest
from tests.cli.commands import CANARY, METHOD, Done, Files, plain, rows, write


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Files:
    root = tmp_path_factory.mktemp("data")
    kinds = ("forget", "retain", "holdout", "stand_in", "probe")
    return Files(root, *(write(root / f"{kind}.jsonl", rows(kind, CANARY * (kind == "forget"))) for kind in kinds))


@pytest.fixture(scope="session")
def done(model: Path, files: Files, tmp_path_factory) -> Done:
    out = tmp_path_factory.mktemp("runs") / "out"
    digest = folder_digest(model)
    sets = [*files.options, f"--stand-in={files.stand_in}", f"--probe=para={files.probe}"]
    ended = plain("forget", model, *sets, "--method", METHOD, "--out", out, "--seed", 3)
    assert ended.returncode in (0, 6), ended.stderr
    report = json.loads((out / "report.json").read_text())
    return Done(out, ended.returncode, ended.stdout + ended.stderr, report, digest)
