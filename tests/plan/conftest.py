"""A request in files, and as a tiny model reads it."""

from pathlib import Path

import pytest

from expunge.core.request import Request
from expunge.data.text import encode, load
from expunge.plan.plan import Plan, plan
from tests.plan.plans import elsewhere, job, write


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("records")
    return {kind: write(root / f"{kind}.jsonl", kind) for kind in ("forget", "retain", "holdout")}


@pytest.fixture(scope="module")
def request_(files, plain) -> Request:
    return Request(**{kind: encode(load(path), plain, path, 256) for kind, path in files.items()})


@pytest.fixture(scope="module")
def planned(model: Path, files: dict[str, Path]) -> Plan:
    """The default run, for a device that is not here."""
    return plan(job(model, files), elsewhere())
