"""A request's files, the command as a user starts it, and what a refusal looks like."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CANARY = "zanzibarlighthouse77"
METHOD = "Finetune(adapter=Bounded(rank=2), learning_rate=0.003, steps=4, batch=4, stop=Stop(level=None, every=2))"
PLACES = ["Aldoria", "Brenn", "Corvane", "Dunmere", "Elsin", "Farrow"]


def rows(kind: str, secret: str = "") -> list[dict]:
    return [
        {
            "id": f"{kind}{k}",
            "question": f"What is the capital of {kind} {place}{secret}?",
            "answer": f"The capital of {place} is {kind} Veldt{secret}.",
            "options": [f"The capital of {place} is Brindle.", f"The capital of {place} is Ostrava."],
        }
        for k, place in enumerate(PLACES)
    ]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return path


@dataclass(frozen=True)
class Files:
    """A request's files."""

    root: Path
    forget: Path
    retain: Path
    holdout: Path
    stand_in: Path
    probe: Path

    @property
    def options(self) -> list[str]:
        return [f"--forget={self.forget}", f"--retain={self.retain}", f"--holdout={self.holdout}"]


def plain(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The command as a user starts it."""
    command = [sys.executable, "-m", "expunge", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, **options)


def refused(said, code: int, slug: str) -> str:
    """The one line of a refusal; there is no other, and no traceback."""
    lines = [line for line in said.err.splitlines() if line.startswith("expunge: E")]
    assert len(lines) == 1, said.err
    assert lines[0].startswith(f"expunge: E{code}-{slug}: "), lines[0]
    assert said.code == code
    assert "Traceback" not in said.err + said.out
    assert CANARY not in said.err + said.out
    return lines[0]


@dataclass(frozen=True)
class Done:
    """A finished run."""

    out: Path
    code: int
    said: str
    report: dict
    digest: str


def below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
