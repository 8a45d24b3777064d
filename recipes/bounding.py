"""Does bounding the update help? Every forget objective under LoRA, slope-matched LoRA, sine and tanh, twice as short.

    python recipes/bounding.py run docs/bounding.jsonl      runs what is missing there; may be stopped and resumed
    python recipes/bounding.py show docs/bounding.jsonl     writes the tables of docs/results.md, between its marks

The world and the models are those of the calibration study (seeds 1 to 3), the objectives have its settings. All
forms are of rank 8 with alpha 16 on the MLP layers, at a constant learning rate, without clipping and without a
criterion that stops a run: what is asked is what happens then. `linear` is LoRA made as steep at zero as sine and
tanh, so that a larger step is not taken for a bound. Use one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from calibration import TRIALS, Trial, kept, knows
from keeping import between, keep, rows
from people import World, trained

from expunge import Adapted, Bounded, Finetune, LoRA, Network, Request, Stop, parse
from expunge.audits.loss_membership import LossMembership
from expunge.core.adapter import Adapter
from expunge.core.objective import Objective
from expunge.errors import RunFailed
from expunge.events import Checked, Event, Step
from expunge.notation.parse import plugins
from expunge.runtime.cached_model import CachedModel

STUDY = (
    *("GA", "NPO alone", "GradDiff", "0.05 NPO + NLL", "SimNPO 2.5 + NLL", "IdkDPO + NLL", "IdkNLL + NLL", "LLMU"),
    *("FLAT-TV + NLL", "WGA + NLL", "SatImp (1, 0.05) + NLL", "UNDIAL alone", "CEU + NLL", "IHL + NLL", "JensUn"),
    *("PDU", "RandomLabel + NLL", "RMU", "GSLoRA", "Settle + NLL, bounded", "Unseen, full"),
)
"""Of the calibration study's settings, those tried here: one for each forget objective, and NPO alone."""
FIRST = ("GA", "NPO alone", "GradDiff", "LLMU", "WGA + NLL", "IHL + NLL", "RMU", "Unseen")
"""Run before the others: three that have no lower bound, two that let go by themselves, three that have a goal."""
FURTHER = (
    Trial("HingedAscent + NLL", "HingedAscent(level=2.0) + RetainNLL()"),
    Trial("AdaptiveRMU", "AdaptiveRMU(scale=5.0, layer=2) + 10.0 * RetainHidden(layer=2)"),
    Trial("GSLoRAPlus", "GSLoRAPlus()"),
)
"""Objectives that the study has no setting for."""
FORMS: dict[str, Adapter] = {
    "LoRA": LoRA(),
    "linear": Bounded(map="linear"),
    "sine": Bounded(map="sine"),
    "tanh": Bounded(map="tanh"),
}
"""`identity` is left out: it is peft's LoRA to the last digit (tests/adapters/test_bounded.py)."""
LENGTHS = ((40, 1e-3), (160, 1e-3), (40, 1e-2))
"""Steps and learning rate: the study's for adapters, four times as long, and ten times as fast."""
SEEDS = (1, 2, 3)
NAMED = ("trial", "form", "steps", "rate", "seed")
MODELS = Path(__file__).parent.parent / "docs" / "calibration" / "models"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"


def objectives() -> list[Trial]:
    """The study's settings without their adapters."""
    known = {trial.name: trial for trial in TRIALS}
    renamed = {"Settle + NLL, bounded": "Settle + NLL", "Unseen, full": "Unseen"}
    chosen = [known[name] for name in STUDY]
    return [*(Trial(renamed.get(t.name, t.name), t.objective, t.stand_in) for t in chosen), *FURTHER]


def untried() -> list[str]:
    """Forget objectives that no setting names."""
    named = set(re.findall(r"\w+", " ".join(repr(parse(trial.objective)) for trial in objectives())))
    named |= set(re.findall(r"\w+", " ".join(trial.objective for trial in objectives())))
    return [
        p.name for p in plugins() if p.folder == "objectives" and p.intention != "retention" and p.name not in named
    ]


@dataclass(frozen=True)
class Setting:
    """One run."""

    trial: Trial
    form: str
    steps: int
    rate: float
    seed: int

    @property
    def name(self) -> dict[str, Any]:
        """What tells its row from the others."""
        return dict(zip(NAMED, (self.trial.name, self.form, self.steps, self.rate, self.seed), strict=True))

    def method(self) -> Finetune:
        """30 + 30 examples a step, as in the study; no clipping, no criterion."""
        objective = parse(self.trial.objective)
        assert isinstance(objective, Objective)
        return Finetune(
            objective=objective,
            adapter=FORMS[self.form],
            learning_rate=self.rate,
            steps=self.steps,
            batch=30,
            retain_batch=30,
            stop=Stop(level=None, max_retain_increase=None, every=100000),
            seed=self.seed,
            norms=False,
        )


def grid() -> Iterator[Setting]:
    """All runs, in an order in which one cut short has whole tables: lengths, then what tells most, then seeds."""
    for steps, rate in LENGTHS:
        for first in (True, False):
            for seed in SEEDS:
                for trial in (trial for trial in objectives() if (trial.name in FIRST) is first):
                    yield from (Setting(trial, form, steps, rate, seed) for form in FORMS)


def run(path: Path, rate: float | None) -> None:
    """Make every row that is not there; those of one learning rate alone, where it is given."""
    done = [{key: row[key] for key in NAMED} for row in rows(path)]
    wanted = [setting for setting in grid() if setting.name not in done and rate in (None, setting.rate)]
    worlds: dict[int, tuple[World, Network]] = {}
    for setting in wanted:
        if setting.seed not in worlds:
            world = World.drawn(setting.seed)
            make = partial(trained, world, True, setting.seed)
            worlds[setting.seed] = world, kept(MODELS / f"{setting.seed}-original", make)
        world, original = worlds[setting.seed]
        found = perform(setting, original, world.request(setting.trial.stand_in))
        keep(path, shown(setting, {**setting.name, **{key: _short(value) for key, value in found.items()}}))


def shown(setting: Setting, row: dict[str, Any]) -> dict[str, Any]:
    """The row with what `tools/docs.py` reads; of the calibration study's targets, those that are measured here."""
    tried = replace(setting.trial, adapter=repr(FORMS[setting.form]), rate=setting.rate, steps=setting.steps)
    return {**row, "method": tried.named(), "family": "language model", "met": targets(row)}


def targets(row: dict[str, Any]) -> dict[str, bool]:
    """Forgotten, and nothing else lost; a run that broke off met neither."""
    if not row["finite"]:
        return dict.fromkeys(("acc", "ret", "r_para"), False)
    return {"acc": row["acc"] <= 0.10, "ret": row["ret"] >= 0.99, "r_para": row["r_para"] >= 0.95}


def perform(setting: Setting, original: Network, request: Request) -> dict[str, Any]:
    """One run, as a row: where it ended, the largest gradient on the way, and how far it got if it broke off."""
    events: list[Event] = []
    found: dict[str, float | None] = dict.fromkeys(("acc", "ret", "r_para", "MIA", "forget", "retain", "size", "entry"))
    finite = True
    try:
        after = setting.method()(original, request, events.append)
    except RunFailed:  # a run that ends in NaN is a result of the study, not a fault of it
        finite = False
    else:
        last = [event for event in events if isinstance(event, Checked)][-1]
        assert isinstance(after, Adapted)
        found = {**ends(after, request), "forget": last.forget, "retain": last.retain}
    norms = [math.hypot(*event.gradient.values()) for event in events if isinstance(event, Step)]
    return {
        "finite": finite,
        "taken": len(norms),
        "gradient": max(norms, default=None),
        **found,
    }


def ends(after: Adapted, request: Request) -> dict[str, float]:
    """What the run's last state knows, and how far its weights are from where they were."""
    changes = [delta for _, delta in after.changes()]
    model = CachedModel(after.plain())
    return {
        "acc": knows(model, request.forget),
        "ret": knows(model, request.retain),
        "r_para": knows(model, request.probes["retain paraphrase"]),
        "MIA": LossMembership()(model, request)[0].value,
        "size": math.sqrt(sum(float(delta.square().sum()) for delta in changes)),
        "entry": max(float(delta.abs().max()) for delta in changes),
    }


def _short(value: object) -> object:
    """Six digits of a number are more than any of these means."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


Found = dict[tuple[str, str], list[dict[str, Any]]]
"""The rows of a length, by objective and form: one for each seed."""


def show(path: Path) -> None:
    """Write every figure to a page of its own, and the summary between the marks of docs/results.md."""
    parts, brief = [HEAD], []
    for steps, rate in LENGTHS:
        found: Found = {}
        for row in rows(path):
            if (row["steps"], row["rate"]) == (steps, rate):
                found.setdefault((row["trial"], row["form"]), []).append(row)
        if found:
            title = f"{steps} steps at {rate:g}"
            parts.append(f"## {title}\n\n{table(found)}")
            brief.append(f"**{title}** ({extent(found)})\n\n{counts(found)}{short(found)}")
    tables = path.with_name("bounding-tables.md")
    tables.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    between(PAGE, "bounding", "\n\n".join(brief))
    print(tables, PAGE, f"not tried: {', '.join(untried()) or 'none'}")


HEAD = """# Does bounding help? Every figure

Made by `python recipes/bounding.py show docs/bounding.jsonl`; [results.md](results.md) tells what was run and what it
means. Median and range over the seeds. `retain`, `forget`: share of values that are the likeliest word; `paraphrase`:
the same of retained people in a wording never trained for them; `gradient`: the largest norm of a step's raw gradient;
`change`: Frobenius norm of the update over all adapted layers; `entry`: its largest entry. The bound on an entry of
sine and tanh is (alpha / r) / sqrt(inputs): 0.204 where a layer has 96 inputs, 0.125 where it has 256."""
COLUMNS = {"retain": "ret", "paraphrase": "r_para", "forget": "acc", "MIA": "MIA", "forget loss": "forget"}
COLUMNS |= {"gradient": "gradient", "change": "size", "entry": "entry"}


def extent(found: Found) -> str:
    """How much of the grid was run."""
    seeds = [len(of) for of in found.values()]
    few = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    return f"{len({trial for trial, _ in found})} of {len(objectives())} objectives; seeds: {few}"


def table(found: Found) -> str:
    """All figures of a length."""
    lines = [f"| objective | form | {' | '.join(COLUMNS)} | finite |", "|---" * (len(COLUMNS) + 3) + "|"]
    for (trial, form), of in found.items():
        cells = [_spread([row[key] for row in of if row[key] is not None]) for key in COLUMNS.values()]
        lines.append(f"| {trial} | {form} | {' | '.join(cells)} | {sum(row['finite'] for row in of)} of {len(of)} |")
    return "\n".join(lines)


def short(found: Found) -> str:
    """Retain, forget and largest gradient, medians alone; a line for each objective."""
    lines = [
        f"| objective: retain / forget / largest gradient | {' | '.join(FORMS)} |",
        "|---" * (len(FORMS) + 1) + "|",
    ]
    for trial in dict.fromkeys(trial for trial, _ in found):
        lines.append(f"| {trial} | {' | '.join(_brief(found.get((trial, form), [])) for form in FORMS)} |")
    return "\n".join(lines)


def _brief(of: list[dict[str, Any]]) -> str:
    ended = [row for row in of if row["finite"]]
    if not ended:
        return "not finite" if of else ""
    ret, acc, gradient = (statistics.median(row[key] for row in ended) for key in ("ret", "acc", "gradient"))
    broke = "" if len(ended) == len(of) else f" ({len(of) - len(ended)} of {len(of)} not finite)"
    return f"{ret:.2f} / {acc:.2f} / {gradient:.3g}{broke}"


COMPARED = (("sine", "linear"), ("tanh", "linear"), ("sine", "tanh"), ("sine", "LoRA"))


def counts(found: Found) -> str:
    """In how many objectives every seed of one form lies beyond every seed of another; nothing with too few seeds."""
    found = {key: of for key, of in found.items() if len(of) == len(SEEDS)}
    if not found:
        return ""
    lines = [
        "| compared | retain higher / lower | largest gradient lower / higher | change smaller / larger |",
        "|---" * 4 + "|",
    ]
    for one, other in COMPARED:
        pairs = [(found[t, one], found[t, other]) for t, form in found if form == one and (t, other) in found]
        cells = [
            f"{sum(_beyond(a, b, key, up) for a, b in pairs)} / {sum(_beyond(a, b, key, not up) for a, b in pairs)}"
            for key, up in (("ret", True), ("gradient", False), ("size", False))
        ]
        lines.append(f"| {one} against {other}, of {len(pairs)} objectives | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def _beyond(these: list[dict[str, Any]], those: list[dict[str, Any]], key: str, above: bool) -> bool:
    """Whether every seed of these lies above (or below) every seed of those."""
    one, other = ([row[key] for row in of if row["finite"]] for of in (these, those))
    if not one or not other:
        return False
    return bool(min(one) > max(other) if above else max(one) < min(other))


def _spread(found: list[float]) -> str:
    """Median and range, to three digits."""
    if not found:
        return ""
    low, middle, high = (f"{value:.3g}" for value in (min(found), statistics.median(found), max(found)))
    return middle if low == high else f"{middle} ({low} to {high})"


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rate", type=float, help="run this learning rate alone")
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.path, asked.rate)
    else:
        show(asked.path)


if __name__ == "__main__":
    main()
