"""Does a start by FILA help? The inverted hinge with LoRA and the sine, each begun at 0 and by FILA, on sixty people.

    OMP_NUM_THREADS=1 python recipes/starts.py run docs/starts --models docs/calibration
    python recipes/starts.py show docs/starts --write

The world, its models and its columns are those of recipes/calibration.py, whose trained models are taken from
`--models` (they are made there where they are missing); objective `InvertedHinge() + RetainNLL()`, 40 steps of 30 + 30
examples, clipped at 1, adapters of rank 8 on all linear layers. `show --write` puts the table between the marks in
docs/results.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from calibration import Case, Trial, judged
from keeping import between, keep, rows

from expunge.core.model import network_of
from expunge.events import Event, Step

HINGE = "InvertedHinge() + RetainNLL()"
INNER = {"LoRA": "LoRA(targets='all')", "sine": "Bounded(targets='all')"}
RATES = (3e-4, 1e-3)
TRIALS = [
    Trial(f"{name}, {rate:g}", HINGE, adapter=adapter, rate=rate)
    for inner, text in INNER.items()
    for name, adapter in ((inner, text), (f"FILA {inner}", f"Fila(adapter={text}, batch=1)"))
    for rate in RATES
] + [
    # Larger factors are larger steps: what the rates next to them tell of that.
    Trial("LoRA, 0.003", HINGE, adapter=INNER["LoRA"], rate=3e-3),
    Trial("FILA LoRA, 0.0001", HINGE, adapter=f"Fila(adapter={INNER['LoRA']}, batch=1)", rate=1e-4),
    Trial("half of the weights (SalUn's mask), 0.0003", HINGE, adapter="Salient()", rate=3e-4),
]
COLUMNS = {
    "acc": "forgotten",
    "para": "in other words",
    "ret": "retained",
    "r_para": "retained, in other words",
    "relearn": "after relearning",
    "MIA": "membership",
    "gradient": "largest gradient",
    "start": "seconds to start",
}


def run(folder: Path, models: Path, seeds: list[int]) -> None:
    """Every trial that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"seed-{seed}.jsonl"
        done = {row["name"] for row in rows(path)}
        case = Case.made(seed, models)
        for trial in TRIALS:
            if trial.name in done:
                continue
            method, largest = trial.method(seed), [0.0]
            assert method.adapter is not None

            def on_event(event: Event, largest: list[float] = largest) -> None:
                if isinstance(event, Step):
                    largest[0] = max(largest[0], *event.gradient.values())

            begun = time.process_time()
            method.adapter(case.models["original"], case.request)
            start = time.process_time() - begun
            after = method(case.models["original"], case.request, on_event)
            merged = network_of(after.plain(), trial.name)
            keep(path, {"name": trial.name, **judged(merged, case), "gradient": largest[0], "start": start})


def table(folder: Path) -> str:
    """Means over the seeds, and each seed's."""
    seeds = [{row["name"]: row for row in rows(path)} for path in sorted(folder.glob("seed-*.jsonl"))]
    made = ["| adapter, learning rate | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for trial in TRIALS:
        found = [seed[trial.name] for seed in seeds if trial.name in seed]
        if found:
            cells = [_cell([row[column] for row in found]) for column in COLUMNS]
            made.append(f"| {trial.name} | " + " | ".join(cells) + " |")
    return "\n".join(made)


def _cell(found: list[float]) -> str:
    each = ", ".join(f"{value:.2f}" for value in found)
    return f"{statistics.mean(found):.2f} ({each})"


def show(folder: Path, write: bool) -> None:
    """Print the table; with `write` it goes into docs/results.md."""
    said = table(folder)
    print(said)
    if write:
        between(folder.parent / "results.md", "starts", said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=Path, default=Path("docs/calibration"))
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--write", action="store_true", help="put the table between the marks in docs/results.md")
    asked = parser.parse_args()
    if asked.what == "run":
        torch.set_num_threads(1)
        run(asked.folder, asked.models, asked.seeds)
    else:
        show(asked.folder, asked.write)


if __name__ == "__main__":
    main()
