"""One process against two on the CPU, the same training step: with one thread, with two, and two that share weights.

    python benchmarks_speed/processes.py --write

A random Llama of 4 M parameters, float32, records of TOFU's lengths, 8 to forget and 16 to retain in a step, bounded
adapters on every MLP layer. The contenders take turns, each run in processes of its own; a run's figure is the median
second of its steps after the third, starting up left out. By then the model before has been asked about every example,
and all processes remember what it said: the second objective asks it, the first does not.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from side_by_side import machine, random_records, ratio, settings, show, spread, table
from transformers import LlamaConfig, LlamaForCausalLM

from expunge.core.request import Request
from expunge.events import Event, Step
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.runtime.processes import is_main, processes

SHAPE = LlamaConfig(
    vocab_size=8192,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=6,
    tie_word_embeddings=True,
)
METHOD = "Finetune(objective={}, steps=9, norms=False, stop=Stop(level=None, every=1000))"
OBJECTIVES = ("GradDiff()", "GradDiff() + RetainKL()")
CONTENDERS = {
    "one process, one thread": (1, 1),
    "one process, two threads": (1, 2),
    "two processes, one thread": (2, 1),
}


def work(objective: str) -> None:
    """One run, in this process or in as many as torchrun started; prints the seconds of its steps."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    network = LanguageModel.of(LlamaForCausalLM(SHAPE).eval(), None)
    records = random_records(72, SHAPE.vocab_size)
    records = [replace(record, question=record.id) for record in records]  # a request holds no two that say the same
    request = Request(forget=tuple(records[:24]), retain=tuple(records[24:]))
    events: list[Event] = []
    with processes("cpu"):
        parse(METHOD.format(objective))(network, request, events.append)
        if is_main():
            print(json.dumps([(e.seconds, e.loss) for e in events if isinstance(e, Step)]))


def timed(objective: str, count: int, threads: int) -> tuple[float, list[float]]:
    """Median second of a run's steps, and its losses."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    launcher = [sys.executable]
    if count > 1:
        # By itself, the launcher finds a free port.
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [*launcher, __file__, "--work", objective]
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    if said.returncode:
        raise SystemExit(said.stderr)
    steps = json.loads(said.stdout)
    return statistics.median(seconds for seconds, _ in steps[3:]), [loss for _, loss in steps]


def main() -> None:
    asked = settings(__doc__, ("--work", {"metavar": "OBJECTIVE"}))
    if asked.work:
        work(asked.work)
        return
    runs = [(objective, name) for objective in OBJECTIVES for name in CONTENDERS]
    seconds: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
    losses: dict[tuple[str, str], list[float]] = {}
    for _ in range(asked.repeats):
        for objective, name in runs:
            found, losses[objective, name] = timed(objective, *CONTENDERS[name])
            seconds[objective, name].append(found)
    rows = []
    for objective, name in runs:
        found, base = seconds[objective, name], (objective, next(iter(CONTENDERS)))
        differ = f"{apart(losses[base], losses[objective, name]):.1e}"
        rows.append([f"`{objective}`", name, spread(found), ratio(seconds[base], found), differ])
    head = ["objective", "", "seconds a step", "times as fast as one thread", "largest difference of a loss"]
    show("processes", f"{machine()}; {asked.repeats} rounds\n\n{table(head, rows)}", asked.write)


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference of two runs' losses."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    main()
