"""How much comes back: RepSelect (arXiv 2606.17168) beside gradient difference and NPO, under relearning.

    OMP_NUM_THREADS=1 python recipes/relearning.py run docs/relearning.jsonl MODELS
    python recipes/relearning.py show docs/relearning.jsonl          writes the table of docs/results.md

A small Llama learnt 54 invented people and forgets six (`recipes/people.py`, seeds 1 to 3; MODELS keeps what was
trained). The attacker trains on two of the six, and the other four are asked for. The share of values that are right,
of the forgotten and, in words never trained on, of retained people, is what is left before the attack; gradient
difference and NPO have the settings of the calibration study, RepSelect several budgets, of which 0.01 is the paper's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration import kept, knows
from keeping import between, keep, rows
from people import ATTRIBUTES, World, trained

from expunge import Method, Network, Request, parse
from expunge.attack.relearn import Relearn
from expunge.core.model import network_of
from expunge.runtime.cached_model import CachedModel

SEEDS = (1, 2, 3)
STEPS = (10, 50)
"""Training steps of the attacker."""
ATTACKED = 2 * len(ATTRIBUTES)
"""Records of two people."""
TRAINED = "adapter=Full(), learning_rate=3e-4, steps=40, batch=30, retain_batch=30, clip=1.0, stop=None, norms=False"
FINE = "learning_rate=0.005, steps=8191"
"""Short steps, for a small model."""
METHODS = {
    "GradDiff": f"Finetune(objective=Ascent() + RetainNLL(), {TRAINED})",
    "GradDiff, 0.2": f"Finetune(objective=0.2 * Ascent() + RetainNLL(), {TRAINED})",
    "0.05 NPO + NLL": f"Finetune(objective=0.05 * NPO() + RetainNLL(), {TRAINED})",
    **{f"RepSelect, budget {budget:g}": f"RepSelect(budget={budget}, {FINE})" for budget in (0.01, 0.1, 0.3, 1.0)},
    "no component collapsed, budget 0.3": f"RepSelect(budget=0.3, rank=0, {FINE})",
}


def run(out: Path, models: Path) -> None:
    """What is missing in the file."""
    done = {(row["seed"], row["model"]) for row in rows(out)}
    for seed in SEEDS:
        world = World.drawn(seed)
        original, retrained = (
            kept(models / f"{seed}-{name}", partial(trained, world, saw, seed + add))
            for name, saw, add in (("original", True, 0), ("retrained", False, 1000))
        )
        request = world.request()
        made: dict[str, Callable[[int], Network]] = {
            "original": partial(untouched, original),
            "retrained": partial(untouched, retrained),
            **{name: partial(unlearnt, method, original, request) for name, method in METHODS.items()},
        }
        for name, make in made.items():
            if (seed, name) not in done:
                keep(out, {"seed": seed, "model": name, **look(make(seed), request)})


def untouched(network: Network, _: int) -> Network:
    return network


def unlearnt(method: str, original: Network, request: Request, seed: int) -> Network:
    plan = parse(method)
    assert isinstance(plan, Method)
    made = (plan.with_seed(seed) if method.startswith("Finetune") else plan)(original, request)
    return network_of(made.plain(), method)


def look(network: Network, request: Request) -> dict[str, float]:
    """The columns of the table."""
    model, others = CachedModel(network), request.forget[ATTACKED:]
    learn = replace(Relearn().learn, retain_batch=ATTACKED, learning_rate=5e-4)
    attacked = {
        f"after {steps}": knows(
            CachedModel(Relearn(steps=steps, items=ATTACKED, learn=learn)(network, request)), others
        )
        for steps in STEPS
    }
    return {
        "forgotten": knows(model, request.forget),
        "retained": knows(model, request.retain),
        "retain paraphrase": knows(model, request.probes["retain paraphrase"]),
        "before": knows(model, others),
        **attacked,
    }


def show(path: Path) -> None:
    """The table: mean and range over the seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(path):
        found.setdefault(row["model"], []).append(row)
    columns = ("forgotten", "retained", "retain paraphrase", "before", *(f"after {steps}" for steps in STEPS))
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, of in found.items():
        cells = [spread([row[column] for row in of]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    between(path.parent / "results.md", "relearning", "\n".join(lines))


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("what", choices=("run", "show"))
    read.add_argument("rows", type=Path)
    read.add_argument("models", type=Path, nargs="?", default=Path("models"))
    given = read.parse_args()
    run(given.rows, given.models) if given.what == "run" else show(given.rows)


if __name__ == "__main__":
    main()
