"""The quantisation attack made to bite: when does rounding the weights bring back what was forgotten?

    python recipes/quantisation.py run docs/quantisation.jsonl      runs what is missing there
    python recipes/quantisation.py show docs/quantisation.jsonl     writes the tables of docs/results.md

The world and models of the calibration study, seeds 1 to 3. `grid`: the original is first rounded to 4 bits a row, and
then the matrices of the blocks and the output matrix alone are trained (60 steps, no weight decay, SimNPO 2.5 + NLL
unless another is named). `grid, all`: the same start, every parameter trained. `study`: the runs of the study itself,
which begin off the grid.
Each ends with 8 and 4 bits (`Quantize`), and with the share of weights whose 4-bit code is that of its start.
Use one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bounding import MODELS, PAGE
from calibration import TRIALS, Trial, kept, knows, values
from keeping import between, keep, rows
from people import World, trained

from expunge import Full, Network, Request
from expunge.attack.quantize import Quantize
from expunge.core.adapter import Adapter
from expunge.core.model import network_of
from expunge.runtime.cached_model import CachedModel

SEEDS = (1, 2, 3)
SIMNPO = "SimNPO(beta=2.5) + RetainNLL()"
GRID = {
    "grid, 3e-5": Trial("", SIMNPO, rate=3e-5, steps=60),
    "grid, 1e-4": Trial("", SIMNPO, rate=1e-4, steps=60),
    "grid, 3e-4": Trial("", SIMNPO, rate=3e-4, steps=60),
    "grid, WGA, 1e-4": Trial("", "WGA() + RetainNLL()", rate=1e-4, steps=60),
    "grid, IHL, 1e-4": Trial("", "InvertedHinge() + RetainNLL()", rate=1e-4, steps=60),
}
ALL = {"grid, all, 1e-4": GRID["grid, 1e-4"]}
OWN = {f"grid, {t.name}": t for t in TRIALS if t.name in ("Unseen, full", "Unseen, LoRA", "Unseen, sine")}
"""Our own method, with its own adapters and settings, from the same start."""
STUDY = (
    *("GradDiff", "0.05 NPO + NLL", "SimNPO 2.5 + NLL", "IdkDPO + NLL", "IdkNLL + NLL", "IHL + NLL", "WGA + NLL"),
    *("SatImp (1, 0.05) + NLL", "CEU + NLL", "PDU", "Unseen, full", "Unseen, sine"),
)
"""The study's runs that are rounded as they are."""


@dataclass(frozen=True)
class Matrices(Adapter):
    """The blocks' matrices and the output matrix: what may move; embeddings and norms stay as they are."""

    def insert(self, network: Network, request: Request) -> Network:
        made = Full().insert(network, request)
        for name, parameter in made.module.named_parameters():
            parameter.requires_grad_(parameter.dim() >= 2 and "embed" not in name)
        return made

    def merge(self, adapted: Network) -> Network:
        return Full().merge(adapted)

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, torch.Tensor]]:
        return Full().deltas(adapted, before)

    def save(self, adapted: Network, folder: Path) -> None:
        """Nothing: the whole network is the result."""


def run(path: Path) -> None:
    """Make every row that is not there."""
    done = {(row["case"], row["seed"]) for row in rows(path)}
    for seed in SEEDS:
        world = World.drawn(seed)
        for case, make in cases(seed, world).items():
            if (case, seed) not in done:
                after, start = make()
                keep(path, {"case": case, "seed": seed, **attacked(after, start, world.request())})


def cases(seed: int, world: World) -> dict[str, Callable[[], tuple[Network, Network]]]:
    """What each case became, and what it began as."""
    original, retrained = (
        kept(MODELS / f"{seed}-{name}", partial(trained, world, saw, seed + add))
        for name, saw, add in (("original", True, 0), ("retrained", False, 1000))
    )
    rounded = network_of(Quantize(4)(original, world.request()), "cases")

    def forgets(trial: Trial, adapter: Adapter | None, start: Network) -> tuple[Network, Network]:
        method = trial.method(seed)
        method = replace(method, adapter=adapter) if adapter else method
        return network_of(method(start, world.request(trial.stand_in)).plain(), trial.objective), start

    return {
        "original": lambda: (original, original),
        "retrained": lambda: (retrained, original),
        "original on the grid": lambda: (rounded, rounded),
        **{case: partial(forgets, trial, Matrices(), rounded) for case, trial in GRID.items()},
        **{case: partial(forgets, trial, Full(), rounded) for case, trial in ALL.items()},
        **{case: partial(forgets, trial, None, rounded) for case, trial in OWN.items()},
        **{f"study, {t.name}": partial(forgets, t, None, original) for t in TRIALS if t.name in STUDY},
    }


def attacked(after: Network, start: Network, request: Request) -> dict[str, float]:
    """What is known of the forgotten and the retained at full precision, at 8 bits and at 4."""
    found: dict[str, float] = {}
    for bits, network in (("", after), ("8", Quantize(8)(after, request)), ("4", Quantize(4)(after, request))):
        model = CachedModel(network)
        found |= {
            f"acc{bits}": knows(model, request.forget),
            f"P{bits}": float(values(model, request.forget).exp().mean()),
            f"ret{bits}": knows(model, request.retain),
        }
    return {**found, "equal": Quantize(4).equal_codes(after, start)}


Check = tuple[str, Callable[[dict[str, float]], bool]]
GONE: Check = ("acc <= 0.1", lambda row: row["acc"] <= 0.1)
GONE8: Check = ("8 bits: acc <= 0.1", lambda row: row["acc8"] <= 0.1)
BACK: Check = ("4 bits: acc >= 0.9", lambda row: row["acc4"] >= 0.9)
STAYS: Check = ("4 bits: acc <= 0.1", lambda row: row["acc4"] <= 0.1)
STEADY: Check = ("4 bits: acc changes by <= 0.04", lambda row: abs(row["acc4"] - row["acc"]) <= 0.04)
ASKED: dict[str, tuple[Check, ...]] = {
    "original on the grid": (("acc >= 0.98", lambda row: row["acc"] >= 0.98),),
    "grid, 3e-5": (BACK, ("codes >= 0.99", lambda row: row["equal"] >= 0.99)),
    "grid, 1e-4": (GONE, GONE8, BACK, ("codes >= 0.99", lambda row: row["equal"] >= 0.99)),
    "grid, 3e-4": (GONE, BACK, ("codes >= 0.98", lambda row: row["equal"] >= 0.98)),
    "grid, all, 1e-4": (GONE, STAYS, ("codes <= 0.94", lambda row: row["equal"] <= 0.94)),
}
"""What the study that this rebuilds found, as bounds for each seed; of its own runs STEADY was asked."""
SHOWN = {"acc": "acc", "P": "P", "retain": "ret", "acc, 8 bits": "acc8", "acc, 4 bits": "acc4", "P, 4 bits": "P4"}
SHOWN |= {"retain, 4 bits": "ret4", "equal codes": "equal"}


def show(path: Path) -> None:
    """Write the table between its marks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(path):
        found.setdefault(row["case"], []).append(row)
    lines = [f"| case | {' | '.join(SHOWN)} | asked: met in so many seeds |", "|---" * (len(SHOWN) + 2) + "|"]
    order = ["original", "retrained", "original on the grid", *GRID, *ALL, *OWN, *(f"study, {name}" for name in STUDY)]
    for case in (case for case in order if case in found):
        of = found[case]
        checks = ASKED.get(case, (STEADY,) if case.startswith("study") else ())
        cells = [cell([row[key] for row in of], 4 if key == "equal" else 2) for key in SHOWN.values()]
        met = "; ".join(f"{text}: {sum(map(good, of))} of {len(of)}" for text, good in checks)
        lines.append(f"| {case} | {' | '.join(cells)} | {met} |")
    between(PAGE, "quantisation", "\n".join(lines))
    print(PAGE)


def cell(found: list[float], digits: int) -> str:
    """Median and, where it says more, the range."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(found), statistics.median(found), max(found)))
    return middle if low == high else f"{middle} ({low} to {high})"


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    (run if asked.what == "run" else show)(asked.path)


if __name__ == "__main__":
    main()
