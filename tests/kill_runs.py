"""Kills runs at random moments and has them go on: is what comes out the same to the bit, and is no traceback shown?

    EXPUNGE_SHAPES=off PYTHONPATH=. python tests/kill_runs.py DIR [--kill 100] [--end 40] [--seed 0]

Each trial starts the command, sends SIGKILL (or SIGINT, SIGTERM or SIGHUP in turn) after a time drawn evenly from a
run's own length, then runs it again, with `--resume` where there are checkpoints, until a result lies there. DIR keeps
a line for each trial, so that the script itself can be stopped and goes on where it was. Runs are forked from one
process that has paid for importing torch. Not a test: pytest does not collect it, and CI does not run it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from expunge.runtime.atomic_files import MANIFEST, check_manifest, sha256
from tests.cli.commands import CANARY, rows, write
from tests.command_server import run_command
from tests.conftest import save_model
from tests.forks import fork, wait

ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
METHOD = (
    "Finetune(adapter=Bounded(rank=2), steps=12, batch=2, retain_batch=3, learning_rate=0.001, schedule='linear', "
    "stop=Stop(level=None, every=3))"
)
FILES = ("model/model.safetensors", "adapter/adapter_model.safetensors")


def start(arguments: list[str], said: Path) -> int:
    """The command in a process of its own, what it says in `said`; its number."""
    return fork(run_command, arguments, (said, said))


def prepare(place: Path) -> list[str]:
    """A tiny model and a request; what is asked of each run."""
    if not (place / "model").is_dir():
        save_model(place / "model.new").rename(place / "model")
    for kind in ("forget", "retain", "holdout"):
        write(place / f"{kind}.jsonl", rows(kind, CANARY * (kind == "forget")))
    files = [f"--{kind}={place / kind}.jsonl" for kind in ("forget", "retain", "holdout")]
    return ["forget", str(place / "model"), *files, "--audits=Loss", "--method", METHOD, "--checkpoint-every=2"]


def digests(out: Path) -> list[str]:
    check_manifest(out)
    return [sha256(out / name) for name in FILES]


def straight(asked: list[str], place: Path) -> tuple[list[str], float]:
    """What comes out of a run that nobody disturbs, and the seconds that it takes."""
    begun = time.monotonic()
    assert wait(start([*asked, "--out", str(place / "straight")], place / "straight.txt")) in (0, 6)
    taken = time.monotonic() - begun
    found = digests(place / "straight")
    shutil.rmtree(place / "straight")
    return found, taken


def try_once(asked: list[str], place: Path, kind: signal.Signals, after: float, right: list[str]) -> dict[str, object]:
    """Disturb a run after so many seconds, have it end, and compare."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    out, said = place / "out", place / "said.txt"
    child = start([*asked, "--out", str(out)], said)
    time.sleep(after)
    os.kill(child, kind)  # a child that has ended is a zombie until `wait`, so the number is still its own
    code = wait(child)
    allowed = {0, 6, -signal.SIGKILL} if kind == signal.SIGKILL else {0, 6, 130}
    whole = not out.exists() or (out / MANIFEST).is_file()
    saved = out.with_name("out.checkpoints")
    left = len(list(saved.glob("step-??????"))) if saved.is_dir() else 0
    again, codes = 0, []
    while not out.exists() and again < 3:
        resumable = saved.is_dir() and any(saved.glob("step-??????"))
        codes.append(wait(start([*asked, "--out", str(out), *(["--resume"] if resumable else [])], said)))
        again += 1
    text = said.read_text(errors="replace")
    remains = sorted(path.name for path in place.iterdir() if path.name not in ("out", "said.txt", ".out.lock"))
    return {
        "signal": kind.name,
        "after": round(after, 3),
        "code": code,
        "checkpoints": left,
        "again": codes,
        "right_code": code in allowed and all(each in (0, 6) for each in codes),
        "whole": whole,
        "equal": out.exists() and digests(out) == right,
        "traceback": "Traceback" in text or "Exception ignored" in text,
        "leak": CANARY in text,
        "remains": [name for name in remains if not (name == "out.checkpoints" and code in (0, 6, 130))],
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("--kill", type=int, default=100)
    asked.add_argument("--end", type=int, default=40)
    asked.add_argument("--seed", type=int, default=0)
    given = asked.parse_args()
    # A shell that starts this in the background has both ignored, and a run would leave them so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ |= {"HF_HUB_OFFLINE": "1", "EXPUNGE_CACHE": "off", "COLUMNS": "200"}
    torch.set_num_threads(1)
    given.folder.mkdir(parents=True, exist_ok=True)
    place = given.folder.resolve()
    options = prepare(place)
    lines = place / "trials.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
    right, taken = straight(options, place)
    plan = [signal.SIGKILL] * given.kill + [ENDS[k % len(ENDS)] for k in range(given.end)]
    random.Random(given.seed).shuffle(plan)
    for k, kind in enumerate(plan):
        after = random.Random(f"{given.seed} {k}").random()
        if k < len(done):
            continue
        trial = try_once(options, place / "trial", kind, after * taken, right)
        done.append(trial)
        with lines.open("a") as file:
            file.write(json.dumps(trial) + "\n")
    faults = [t for t in done if t["traceback"] or t["leak"] or t["remains"] or not (t["equal"] and t["whole"])]
    faults += [t for t in done if not t["right_code"] and t not in faults]
    for kind in (signal.SIGKILL, *ENDS):
        of = [t for t in done if t["signal"] == kind.name]
        cut = sum(t["code"] not in (0, 6) for t in of)
        resumed = sum(bool(t["checkpoints"]) and bool(t["again"]) for t in of)
        print(
            f"{kind.name}: {len(of)} sent, {cut} cut a run off, {resumed} resumed from a checkpoint, "
            f"{sum(t['equal'] for t in of)} equal to the bit, {sum(t['traceback'] for t in of)} tracebacks"
        )
    for fault in faults:
        print("FAULT", json.dumps(fault))
    with contextlib.suppress(OSError):
        shutil.rmtree(place / "trial")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
