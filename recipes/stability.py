"""Where does the bound itself help? A map over learning rate, slope and length: sine and tanh against LoRA as steep.

    python recipes/stability.py run docs/stability.jsonl      runs what is missing there; may be stopped and resumed
    python recipes/stability.py run docs/stability.jsonl --world cifar --data CIFAR10 --models MODELS
    python recipes/stability.py show docs/stability.jsonl     writes docs/stability.md and docs/stability-*.svg

Gradient difference with equal weights: 32 + 32 images a step, rank 8, alpha 16, MLP layers, a constant learning rate,
no clipping, nothing that stops a run. `linear` is as steep at zero as sine and tanh and has no bound. One run of 480
steps is read three times on its way. Use one thread (OMP_NUM_THREADS=1): all 180 runs of a world take about 50 minutes
of it.

    digits    a transformer that reads digits forgets the eights; each seed has a transformer of its own
    cifar     the small transformer of `cifar.py` (its `run` leaves it in OUT/models) forgets the ships of CIFAR-10
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from calibration import kept
from digits import FORGOTTEN, Digits, trained
from keeping import add, between, rows
from worlds import Places

from expunge import Bounded, Finetune, LogProbabilities, Network, Request, Stop
from expunge.benchmarks._data import Data
from expunge.core.adapter import Adapted
from expunge.data.images import Picture
from expunge.errors import RunFailed
from expunge.events import Checked, Event, Step
from expunge.methods._loop import Loop
from expunge.models.open import open_network
from expunge.objectives.grad_diff import GradDiff

MAPS = ("linear", "sine", "tanh")
OMEGAS = (25.0, 100.0, 400.0, 2000.0)
RATES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LENGTHS = (30, 120, 480)
SEEDS = (0, 1, 2)
FIRST = (
    (1e-2, OMEGAS, MAPS, LENGTHS[-1]),
    (3e-3, OMEGAS[1:], MAPS, LENGTHS[1]),
    (1e-3, OMEGAS[1:], MAPS[:2], LENGTHS[1]),
    (1e-4, OMEGAS[3:], MAPS[:2], LENGTHS[1]),
    (3e-2, OMEGAS[:2], MAPS, LENGTHS[1]),
    (1e-3, OMEGAS[1:2], MAPS[:2], LENGTHS[-1]),
    *((rate, OMEGAS, MAPS, steps) for steps in LENGTHS[1:] for rate in RATES),
)
"""Rates, omegas, maps and steps in the order in which they are run, so that a study cut short has the most telling ones
with all seeds. A rate is constant, so the first steps of a long run are a short one."""
MODELS = Path(__file__).parent.parent / "docs" / "calibration" / "models"
ALL_STEPS = Stop(level=None, max_retain_increase=None, max_forget_loss=None, max_growth=None, every=LENGTHS[0])


@dataclass(frozen=True)
class Setting:
    """One run."""

    world: str
    map: str
    omega: float
    rate: float
    seed: int
    steps: int

    def method(self) -> Finetune:
        """As the first lines of this file say."""
        return Finetune(
            objective=GradDiff(),
            adapter=Bounded(map=self.map, omega=self.omega),
            learning_rate=self.rate,
            steps=self.steps,
            batch=32,
            retain_batch=32,
            stop=ALL_STEPS,
            seed=self.seed,
            norms=False,
        )


def grid(world: str, most: int) -> Iterator[Setting]:
    """All runs of at most so many steps, the most telling ones first."""
    for rate, omegas, maps, steps in FIRST:
        for omega in omegas:
            for seed in SEEDS:
                yield from (Setting(world, map, omega, rate, seed, min(steps, most)) for map in maps)


@dataclass(frozen=True)
class Parts:
    """The pictures of a run: of the class that goes and of others, of the training and of the test part."""

    gone: tuple[Picture, ...]
    others: tuple[Picture, ...]
    unseen_gone: tuple[Picture, ...]
    unseen_others: tuple[Picture, ...]


def digits(seed: int, places: Places | None) -> tuple[Network, Parts]:
    """The fixed split of `digits.py`, and a transformer of this seed; half a minute where it was not made before."""
    data = Digits.load()
    halves = ((part, which) for part in (data.train, data.test) for which in (True, False))
    parts = Parts(*(tuple(p for p in part if (p.label == FORGOTTEN) is which) for part, which in halves))
    return kept(MODELS / f"digits-{seed}", lambda: trained(data.train, seed)), parts


def cifar(seed: int, places: Places | None) -> tuple[Network, Parts]:
    """The world `vit` of `cifar.py`; one transformer for all seeds."""
    from cifar import WORLDS as BENCHMARKS

    if places is None:
        raise SystemExit("--world cifar needs --data (a folder with CIFAR-10) and --models (with the folder vit).")
    network = open_network(str(places.models / "vit"))
    benchmark = BENCHMARKS["vit"].benchmark
    [stage] = benchmark.stages(Data(places.data, benchmark.home), network)
    sets = (stage.request.forget, stage.request.retain, stage.sets["forget test"], stage.sets["test"])
    return network, Parts(*(cast(tuple[Picture, ...], tuple(each)) for each in sets))


WORLDS: dict[str, Callable[[int, Places | None], tuple[Network, Parts]]] = {
    "digits": cache(digits),
    "cifar": cache(cifar),
}
"""A network and its pictures, by seed."""


def read(model: Network | Adapted, parts: Parts) -> dict[str, float]:
    """Accuracies and losses of a model: what it lost of what it should keep, and what it still knows of the eights."""
    said = {name: model.ask(LogProbabilities(), batch) for name, batch in vars(parts).items()}
    right = {name: float(reply.right.double().mean()) for name, reply in said.items()}
    return {
        "kept": right["unseen_others"],
        "known": right["gone"],
        "unseen": right["unseen_gone"],
        "kept_loss": -float(said["unseen_others"].log_probs.double().mean()),
        "known_loss": -float(said["gone"].log_probs.double().mean()),
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


def perform(setting: Setting, places: Places | None) -> Iterator[dict[str, Any]]:
    """One run as a row for each length. A length that a run did not reach, since it ended in NaN, has no numbers."""
    network, parts = WORLDS[setting.world](setting.seed, places)
    plan, request = setting.method(), Request(forget=parts.gone, retain=parts.others)
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
    for steps in (length for length in LENGTHS if length <= setting.steps):
        numbers = {key: float(f"{value:.5g}") for key, value in found.get(steps, {}).items()}
        yield {**asdict(setting), "steps": steps, "taken": min(steps, len(gradients)), "found": numbers or None}


def run(path: Path, world: str, most: int, places: Places | None) -> None:
    """Make every row of a world that is not there, of runs of at most so many steps."""
    done = {place(row) for row in rows(path)}
    for seed in SEEDS:
        before = {"world": world, "map": "original", "omega": None, "rate": None, "seed": seed, "steps": 0}
        if place(before) not in done:
            add(path, [before | {"found": read(*WORLDS[world](seed, places))}])
    for setting in grid(world, most):
        if place(asdict(setting)) not in done:
            made = [row for row in perform(setting, places) if place(row) not in done]
            done |= {place(row) for row in made}
            add(path, made)
            print(setting, flush=True)


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a row from the others."""
    return tuple(row[key] for key in ("world", "map", "omega", "rate", "seed", "steps"))


Cell = tuple[float, float, int]
"""A learning rate, an omega and a number of steps."""
Found = dict[tuple[Cell, str], dict[int, dict[str, float]]]
"""What was read of each cell and map, by seed; of runs that ended in NaN nothing."""
ENOUGH = 0.05
"""Share of the training pictures of the class that a run may still know and count as one that forgot them."""


def gather(path: Path, world: str) -> Found:
    """The rows of a world."""
    found: Found = {}
    for row in rows(path):
        if row["steps"] and row["world"] == world:
            of = found.setdefault(((row["rate"], row["omega"], row["steps"]), row["map"]), {})
            if row["found"]:
                of[row["seed"]] = row["found"]
    return found


def mean(of: dict[int, dict[str, float]], key: str) -> float:
    """Over seeds."""
    return statistics.fmean(found[key] for found in of.values())


def gains(found: Found, cell: Cell, map: str) -> list[float]:
    """By how much more of the retained test images a map keeps than `linear` of the same seed."""
    ours, theirs = (found.get((cell, each), {}) for each in (map, "linear"))
    return [ours[seed]["kept"] - theirs[seed]["kept"] for seed in SEEDS if seed in ours and seed in theirs]


def agree(differences: list[float]) -> bool:
    """Whether all three seeds have the same sign."""
    return len(differences) == len(SEEDS) and (min(differences) > 0 or max(differences) < 0)


def cells() -> Iterator[Cell]:
    """All cells, by length, then by omega times the rate: by about so much a step may move the phase."""
    places = sorted(((rate, omega) for rate in RATES for omega in OMEGAS), key=lambda at: (at[0] * at[1], at[0]))
    yield from ((rate, omega, steps) for steps in LENGTHS for rate, omega in places)


def table(found: Found) -> str:
    """A line for each cell that has rows."""
    lines = [
        "| steps | omega x rate | rate | omega | kept: linear | sine | tanh | sine less linear | tanh less linear | "
        "class known | largest gradient | gradient at the end | size of the update | phases beyond the first crest |",
        "|---" * 14 + "|",
    ]
    for cell in cells():
        each = {map: found.get((cell, map), {}) for map in MAPS}
        if not any(each.values()):
            continue
        kept = [_spread([seed["kept"] for seed in of.values()]) for of in each.values()]
        less = [_difference(gains(found, cell, map)) for map in MAPS[1:]]
        numbers = ("known", "largest", "gradient", "size", "turned")
        rest = [" / ".join(_short(mean(of, key)) if of else "-" for of in each.values()) for key in numbers]
        rate, omega, steps = cell
        lines.append(f"| {steps} | {omega * rate:g} | {rate:g} | {omega:g} | {' | '.join([*kept, *less, *rest])} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "-"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # + 0.0: no minus before a zero


def _difference(values: list[float]) -> str:
    if not values:
        return "-"
    said = _signed(statistics.fmean(values))
    return f"**{said}**" if agree(values) else said


def tuned(found: Found) -> str:
    """For each length, omega and map the rate that keeps most, of those run with all seeds of which each forgot."""
    lines = ["| steps | omega | linear: best rate, kept | sine | tanh |", "|---" * 5 + "|"]
    for steps in LENGTHS:
        for omega in OMEGAS:
            said = [_best(found, steps, omega, map) for map in MAPS]
            if {*said} != {"-"}:
                lines.append(f"| {steps} | {omega:g} | {' | '.join(said)} |")
    return "\n".join(lines)


def _best(found: Found, steps: int, omega: float, map: str) -> str:
    asked = {rate: found.get(((rate, omega, steps), map), {}) for rate in RATES}
    whole = {rate: of for rate, of in asked.items() if len(of) == len(SEEDS)}
    forgot = {rate: of for rate, of in whole.items() if max(f["known"] for f in of.values()) <= ENOUGH}
    if not forgot:
        return "none forgot" if whole else "-"
    rate = max(forgot, key=lambda each: mean(forgot[each], "kept"))
    return f"{rate:g}: {_spread([seed['kept'] for seed in forgot[rate].values()])}"


def plot(found: Found, path: Path) -> None:
    """Heat maps of what sine and tanh keep more than `linear`; a column for each length."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    lengths = [steps for steps in LENGTHS if any(cell[2] == steps for cell, _ in found)]
    with rc_context({"svg.hashsalt": "stability", "svg.fonttype": "path", "font.size": 8.5}):
        figure = Figure(figsize=(2 + 3 * len(lengths), 6.4), layout="constrained")
        axes = figure.subplots(2, len(lengths), sharex=True, sharey=True)
        for row, map in zip(axes, MAPS[1:], strict=True):
            for axis, steps in zip(row, lengths, strict=True):
                shown = _panel(axis, found, map, steps)
                axis.set_title(f"{map}, {steps} steps")
        for axis in axes[-1]:
            axis.set_xlabel("omega (omega / gain at 64 inputs)")
        for row in axes:
            row[0].set_ylabel("learning rate")
        figure.colorbar(shown, ax=axes, shrink=0.7, label="retained test images, less those that linear keeps")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(axis: Any, found: Found, map: str, steps: int) -> Any:
    """One heat map: the difference, and under it what `linear` keeps; bold where all seeds agree."""
    every = [[gains(found, (rate, omega, steps), map) for omega in OMEGAS] for rate in RATES]
    means = [[statistics.fmean(values) if values else math.nan for values in line] for line in every]
    shown = axis.imshow(means, cmap="RdBu", vmin=-0.5, vmax=0.5, aspect="auto", origin="lower")
    axis.set_facecolor("#eeeeee")
    axis.set_xticks(range(len(OMEGAS)), [f"{omega:g}\n({omega / 8:.3g})" for omega in OMEGAS])
    axis.set_yticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    for y, line in enumerate(every):
        for x, values in enumerate(line):
            if not values:
                continue
            level = mean(found[(RATES[y], OMEGAS[x], steps), "linear"], "kept")
            colour = "white" if abs(means[y][x]) > 0.33 else "#222222"
            weight = "bold" if agree(values) else "normal"
            axis.text(x, y + 0.12, _signed(means[y][x]), ha="center", va="center", color=colour, weight=weight)
            axis.text(x, y - 0.24, f"linear {level:.2f}", ha="center", va="center", color=colour, size=6.5)
    return shown


def show(path: Path) -> None:
    """Write each world's tables between its marks of docs/stability.md, and its figure beside it."""
    page = path.with_suffix(".md")
    for world in dict.fromkeys(row["world"] for row in rows(path)):
        found, figure = gather(path, world), path.with_name(f"{path.stem}-{world}.svg")
        mine = [row for row in rows(path) if row["world"] == world]
        made = [row for row in mine if row["steps"]]
        every = len(RATES) * len(OMEGAS) * len(MAPS) * len(SEEDS) * len(LENGTHS)
        lost = sum(row["found"] is None for row in made)
        before = statistics.fmean(row["found"]["kept"] for row in mine if not row["steps"])
        head = (
            f"{len(made)} of {every} readings; in NaN: {lost}. Before, {before:.3f} of the retained test images are "
            f"right."
        )
        between(page, f"stability-{world}", f"{head}\n\n{tuned(found)}\n\n{table(found)}")
        plot(found, figure)
        print(page, figure)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("path", type=Path)
    running.add_argument("--world", choices=list(WORLDS), default="digits")
    running.add_argument("--steps", type=int, choices=LENGTHS, default=LENGTHS[-1], help="of the longest run")
    running.add_argument("--data", type=Path, help="folder with CIFAR-10's train.parquet and test.parquet")
    running.add_argument("--models", type=Path, help="folder with the model vit")
    parts.add_parser("show").add_argument("path", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        places = Places(given.data, given.models) if given.data and given.models else None
        run(given.path, given.world, given.steps, places)
    else:
        show(given.path)


if __name__ == "__main__":
    main()
