"""Where does the bound itself help? A map over learning rate, slope and length: sine and tanh against LoRA as steep.

    python recipes/stability.py run docs/stability.jsonl      runs what is missing there; may be stopped and resumed
    python recipes/stability.py show docs/stability.jsonl     writes docs/stability.md and docs/stability.svg

Gradient difference with equal weights on the digits transformer, which forgets the eights: 32 + 32 images a step, rank
8, alpha 16, MLP layers, a constant learning rate, no clipping, nothing that stops a run. `linear` is as steep at zero
as sine and tanh and has no bound. One run of 480 steps is read three times on its way. Use one thread
(OMP_NUM_THREADS=1): all 180 runs take about 40 minutes of it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from digits import FORGOTTEN, Digits, trained
from keeping import add, rows

from expunge import Bounded, Finetune, LogProbabilities, Network, Request, Stop
from expunge.core.adapter import Adapted
from expunge.core.model import Batch
from expunge.errors import RunFailed
from expunge.events import Checked, Event, Step
from expunge.methods._loop import Loop
from expunge.objectives.grad_diff import GradDiff

MAPS = ("linear", "sine", "tanh")
OMEGAS = (25.0, 100.0, 400.0, 2000.0)
RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LENGTHS = (30, 120, 480)
SEEDS = (0, 1, 2)
TELLING = ((1e-2, OMEGAS), (1e-3, OMEGAS[1:]), (3e-3, OMEGAS), (1e-4, OMEGAS[2:]), (3e-2, OMEGAS[:1]))
REST = ((3e-2, OMEGAS[1:2]), (1e-3, OMEGAS[:1]), (1e-4, OMEGAS[:2]), (3e-2, OMEGAS[2:]))
FIRST = ((TELLING[:1], MAPS), (TELLING[1:], MAPS[:2]), (TELLING[1:], MAPS[2:]), (REST, MAPS))
"""The order of the cells, each with all seeds, so that a study cut short has the most telling ones: omega times the
rate, by which the phase moves in a step, is near 1 there."""
ALL_STEPS = Stop(level=None, max_retain_increase=None, max_forget_loss=None, max_growth=None, every=LENGTHS[0])


@dataclass(frozen=True)
class Setting:
    """One run."""

    map: str
    omega: float
    rate: float
    seed: int

    def method(self) -> Finetune:
        """As the first lines of this file say."""
        return Finetune(
            objective=GradDiff(),
            adapter=Bounded(map=self.map, omega=self.omega),
            learning_rate=self.rate,
            steps=LENGTHS[-1],
            batch=32,
            retain_batch=32,
            stop=ALL_STEPS,
            seed=self.seed,
            norms=False,
        )


def grid() -> Iterator[Setting]:
    """All 180 runs."""
    for cells, maps in FIRST:
        for rate, omegas in cells:
            for omega in omegas:
                for seed in SEEDS:
                    yield from (Setting(map, omega, rate, seed) for map in maps)


@dataclass(frozen=True)
class Parts:
    """The pictures of a run: eights and others, of the training and of the test part."""

    eights: Batch
    others: Batch
    unseen_eights: Batch
    unseen_others: Batch

    @staticmethod
    @cache
    def load() -> Parts:
        """The fixed split of `digits.py`."""
        data = Digits.load()
        halves = ((part, which) for part in (data.train, data.test) for which in (True, False))
        return Parts(*(tuple(p for p in part if (p.label == FORGOTTEN) is which) for part, which in halves))


@cache
def original(seed: int) -> Network:
    """The transformer before it forgets; half a minute."""
    return trained(Digits.load().train, seed)


def read(model: Network | Adapted, parts: Parts) -> dict[str, float]:
    """Accuracies and losses of a model: what it lost of what it should keep, and what it still knows of the eights."""
    said = {name: model.ask(LogProbabilities(), batch) for name, batch in vars(parts).items()}
    right = {name: float(reply.right.double().mean()) for name, reply in said.items()}
    return {
        "kept": right["unseen_others"],
        "known": right["eights"],
        "unseen": right["unseen_eights"],
        "kept_loss": -float(said["unseen_others"].log_probs.double().mean()),
        "known_loss": -float(said["eights"].log_probs.double().mean()),
    }


@torch.no_grad()
def update(adapted: Adapted) -> dict[str, float]:
    """The update's Frobenius norm, its root mean square in bounds, and the share of its phases beyond the first crest.

    A phase beyond pi / 2 is where the sine turns back and where tanh has flattened: there, bounded and linear part.
    """
    squares, filled, turned, entries = 0.0, 0.0, 0, 0
    for module in adapted.inner.module.modules():
        for name, form in getattr(module, "bounded_form", {}).items():
            a, b = module.bounded_A[name], module.bounded_B[name]  # type: ignore[index]
            square = float(form.delta(a, b).double().square().sum())
            squares, filled = squares + square, filled + square / form.scale**2
            turned += int((form.phase(a, b).abs() > math.pi / 2).sum())
            entries += a.shape[1] * b.shape[0]
    return {"size": math.sqrt(squares), "filled": math.sqrt(filled / entries), "turned": turned / entries}


def perform(setting: Setting) -> Iterator[dict[str, Any]]:
    """One run as a row for each length. A length that a run did not reach, since it ended in NaN, has no numbers."""
    parts, network, plan = Parts.load(), original(setting.seed), setting.method()
    request = Request(forget=parts.eights, retain=parts.others)
    gradients: list[float] = []
    found: dict[int, dict[str, float]] = {}

    def watch(event: Event) -> None:
        if isinstance(event, Step):
            gradients.append(math.hypot(*event.gradient.values()))
        if isinstance(event, Checked) and event.step in LENGTHS:
            last = statistics.median(gradients[-LENGTHS[0] :])
            found[event.step] = read(adapted, parts) | update(adapted) | {"largest": max(gradients), "gradient": last}

    # The parts of `Finetune.change`, so that the weights can be read between two steps.
    assert plan.adapter is not None
    torch.manual_seed(setting.seed)
    adapted = plan.adapter(network, request)
    with suppress(RunFailed):  # a run that ends in NaN is a result of the study, not a fault of it
        Loop(plan, adapted, request, watch, None).train()
    for steps in LENGTHS:
        numbers = {key: float(f"{value:.5g}") for key, value in found.get(steps, {}).items()}
        yield {**asdict(setting), "steps": steps, "taken": min(steps, len(gradients)), "found": numbers or None}


def run(path: Path) -> None:
    """Make every row that is not there."""
    done = {(row["map"], row["omega"], row["rate"], row["seed"], row["steps"]) for row in rows(path)}
    for seed in SEEDS:
        if ("original", None, None, seed, 0) not in done:
            found = read(original(seed), Parts.load())
            add(path, [{"map": "original", "omega": None, "rate": None, "seed": seed, "steps": 0, "found": found}])
    for setting in grid():
        if (*asdict(setting).values(), LENGTHS[-1]) not in done:
            add(path, perform(setting))
            print(setting, flush=True)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("path", type=Path)
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.path)


if __name__ == "__main__":
    main()
