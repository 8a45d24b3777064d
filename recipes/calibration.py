"""The calibration study: every method on sixty invented people, with every audit, beside the model retrained.

    python recipes/calibration.py run docs/calibration        runs what is missing there; may be stopped and resumed
    python recipes/calibration.py sweep docs/calibration      tries the most promising on seed 0, which no table uses
    python recipes/calibration.py large docs/calibration      the best again on 150 people, 105 answers forgotten
    python recipes/calibration.py show docs/calibration       writes docs/calibration-tables.md, and the larger study's
                                                              table between its marks in docs/results.md

A word-level Llama of half a million parameters learns 54 people; 6 of them are forgotten, 6 more are never seen (the
holdout). The retrained model has the same recipe without the 6, from another seed. What the retrained model scores is
what forgetting would look like. Use one thread (OMP_NUM_THREADS=1): the model is too small for more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows
from people import ATTRIBUTES, Groups, World, passages, trained

from expunge import LogProbabilities, Network, Request, Text, parse
from expunge.attack.relearn import Relearn
from expunge.audits.linear_probe import LinearProbe
from expunge.audits.loss_membership import LossMembership
from expunge.audits.truth_ratio import TruthRatio
from expunge.core.model import Batch, network_of
from expunge.data.text import Passage
from expunge.events import Event, Step
from expunge.methods.finetune import Finetune
from expunge.models.open import open_network
from expunge.primitives.statistics import ks
from expunge.runtime.atomic_files import whole_folder
from expunge.runtime.cached_model import CachedModel

Row = dict[str, Any]
VALUE = 3
"""The row of an answer that holds the value: first name, surname, attribute, value, full stop, end."""


@dataclass(frozen=True)
class Study:
    """How large a study is."""

    groups: Groups = Groups()
    """Who is forgotten, never seen and retained."""
    training: int = 900
    """Steps until a model knows every answer."""
    batch: int = 30
    """Forget examples of a step, all there are; as many retained ones."""


SMALL = Study()
LARGE = Study(Groups(forgotten=21, retained=108), training=1200, batch=105)


@dataclass(frozen=True)
class Trial:
    """A method as the study runs it."""

    name: str
    objective: str
    stand_in: str = "refusal"
    adapter: str = "Full()"
    rate: float = 3e-4
    steps: int = 40

    def method(self, seed: int, batch: int = SMALL.batch) -> Finetune:
        """40 steps on 30 + 30 examples, clipped at 1, nothing that stops it early."""
        made = parse(
            f"Finetune(objective={self.objective}, adapter={self.adapter}, clip=1.0, "
            f"stop=Stop(level=None, max_retain_increase=None, every=100000), norms=False)"
        )
        assert isinstance(made, Finetune)
        return replace(made, learning_rate=self.rate, steps=self.steps, seed=seed, batch=batch, retain_batch=batch)

    def named(self) -> str:
        """What is evidence in docs/methods.md for: the plug-ins and numbers that make this trial."""
        return (
            f"Finetune(objective={self.objective}, adapter={self.adapter}, learning_rate={self.rate:g}, "
            f"steps={self.steps}), stand-ins: {self.stand_in}"
        )


PUBLISHED = [
    Trial("GA", "Ascent()"),
    Trial("NPO alone", "NPO()"),
    Trial("FLAT-TV alone", "FLAT()"),
    Trial("FLAT-TV + NLL", "FLAT() + RetainNLL()"),
    Trial("UNDIAL alone", "UNDIAL()"),
    Trial("CEU alone", "CEU()"),
    Trial("CEU + NLL", "CEU() + RetainNLL()"),
    Trial("GradDiff", "GradDiff()"),
    Trial("GradDiff, 0.2", "0.2 * Ascent() + RetainNLL()"),
    Trial("GA + KL", "Ascent() + RetainKL()"),
    Trial("NPO + NLL", "NPO() + RetainNLL()"),
    Trial("0.05 NPO + NLL", "0.05 * NPO() + RetainNLL()"),
    Trial("SimNPO 2.5 + NLL", "SimNPO(beta=2.5) + RetainNLL()"),
    Trial("0.125 SimNPO 4.5 + NLL", "0.125 * SimNPO(beta=4.5) + RetainNLL()"),
    Trial("IdkNLL + NLL", "IdkNLL() + RetainNLL()"),
    Trial("IdkDPO + NLL", "DPO() + RetainNLL()"),
    Trial("AltPO + NLL", "DPO() + RetainNLL()", stand_in="other"),
    Trial("JensUn", "JensUn() + RetainJSD()"),
    Trial("IHL + NLL", "InvertedHinge() + RetainNLL()"),
    Trial("WGA + NLL", "WGA() + RetainNLL()"),
    Trial("SatImp (5, 1) + NLL", "SatImp(beta1=5.0, beta2=1.0) + RetainNLL()"),
    Trial("SatImp (1, 0.05) + NLL", "SatImp(beta1=1.0, beta2=0.05) + RetainNLL()"),
    Trial("PDU", "PDU()"),
    Trial("LLMU", "LLMU()"),
    Trial("RandomLabel + NLL", "RandomLabel() + RetainNLL()"),
    Trial("RMU", "RMU(strength=20.0, layer=2) + 10.0 * RetainHidden(layer=2)"),
    Trial("GSLoRA", "GSLoRA()", adapter="LoRA()", rate=3e-3),
]
UNSEEN = "Unseen() + RetainNLL() + RetainKL()"
LEVELS = "TokenLevels() + RetainNLL() + RetainKL()"
ROOMY = "Bounded(rank=16, alpha=32.0, targets='all')"
OURS = [
    Trial("Settle + NLL, bounded", "Settle(level=2.0) + RetainNLL()", adapter="Bounded()", rate=1e-3),
    Trial("Unseen, full", UNSEEN, "twin", steps=120),
    Trial("Unseen, LoRA", UNSEEN, "twin", "LoRA(rank=16, alpha=32.0, targets='all')", 1e-3, 120),
    Trial("Unseen, tanh", UNSEEN, "twin", ROOMY.replace("(", "(map='tanh', "), 5e-4, 120),
    Trial("Unseen, sine", UNSEEN, "twin", ROOMY, 5e-4, 120),
    Trial("TokenLevels, bounded", LEVELS, adapter="Bounded()", rate=1e-3, steps=120),
]
TUNING = 0
"""The seed of the sweep."""
SETTINGS = [
    ("Full()", 3e-4, 40),
    ("Full()", 3e-4, 120),
    ("Full()", 1e-4, 120),
    ("Bounded()", 1e-3, 120),
    ("Bounded(targets='all')", 1e-3, 40),
    ("Bounded(targets='all')", 1e-3, 120),
    (ROOMY, 5e-4, 120),
]
"""What each of the most promising was tried with on the tuning seed, ours included: as many settings for each."""
PROMISING = {
    "IHL": ("InvertedHinge() + RetainNLL()", "refusal"),
    "WGA": ("WGA() + RetainNLL()", "refusal"),
    "SatImp": ("SatImp(beta1=1.0, beta2=0.05) + RetainNLL()", "refusal"),
    "SimNPO": ("SimNPO(beta=2.5) + RetainNLL()", "refusal"),
    "Unseen": (UNSEEN, "twin"),
    "TokenLevels": (LEVELS, "refusal"),
}
SWEEP = [
    Trial(f"{name}, {adapter}, {rate:g}, {steps}", objective, stand_in, adapter, rate, steps)
    for name, (objective, stand_in) in PROMISING.items()
    for adapter, rate, steps in SETTINGS
]
TUNED = [Trial("SatImp (1, 0.05), bounded", *PROMISING["SatImp"], "Bounded(targets='all')", 1e-3, 40)]
"""Where the sweep found better than what was there: SatImp's. IHL's, WGA's and SimNPO's best are no better."""
TRIALS = [*PUBLISHED, *TUNED, *OURS]
AGAIN = ("IHL + NLL", "SatImp (1, 0.05) + NLL", "Unseen, sine")
"""Tried again in the larger study: ours, the best published, and the best of the others under the same settings."""
LONGER = [replace(t, name=f"{t.name}, 120 steps", steps=120) for t in TRIALS if t.name in AGAIN and t.steps == 40]
"""With more to forget 40 steps are few: those that have 40 are tried with as many as `Unseen` has, too."""
MODELS = {"original": (True, 0), "retrained": (False, 1000), "retrained again": (False, 2000)}
"""Whether a model saw the forget people, and what is added to its seed. The second retraining is the yardstick's own
noise: what a model that never saw them scores against another that never did."""


def judged(network: Network, case: Case) -> dict[str, float]:
    """Every column of the table for one model."""
    model, request = CachedModel(network), case.request
    ratios = TruthRatio().ratios(model, request.forget)
    against = ks(ratios.tolist(), case.ratios)
    return {
        "acc": knows(model, request.forget),
        "para": knows(model, request.probes["paraphrase"]),
        "ret": knows(model, request.retain),
        "r_para": knows(model, request.probes["retain paraphrase"]),
        "FQ": against.p,
        "KS": against.distance,
        "MIA": LossMembership()(model, request)[0].value,
        "relearn": relearnt(network, case),
        "probe": probed(network, case),
        "said": says(network, passages(request.forget)),
        "P": float(values(model, request.forget).exp().mean()),
    }


def values(model: CachedModel, records: Batch) -> torch.Tensor:
    """Log-probability of each record's value."""
    said = model.ask(LogProbabilities(), records)
    return torch.stack([rows[VALUE] for rows in said.split(said.log_probs)])


def knows(model: CachedModel, records: Batch) -> float:
    """Share of records whose value scores highest, the words before it given."""
    said = model.ask(LogProbabilities(), records)
    return statistics.mean(float(rows[VALUE]) for rows in said.split(said.right.double()))


def says(network: Network, records: tuple[Passage, ...]) -> float:
    """Share of greedy continuations that hold the value."""
    written = network.ask(Text(8), records)
    return statistics.mean(r.answer.split()[VALUE] in text.split() for r, text in zip(records, written, strict=True))


def relearnt(network: Network, case: Case) -> float:
    """What is known of two thirds of the forgotten people after ten steps on the others."""
    count = len(case.world.groups.forget) // 3 * len(ATTRIBUTES)
    learn = replace(Relearn().learn, retain_batch=count, learning_rate=5e-4)
    attacked = Relearn(steps=10, items=count, learn=learn)(network, case.request)
    return knows(CachedModel(attacked), case.request.forget[count:])


def probed(network: Network, case: Case) -> float:
    """Share of the forgotten people's birthplaces that a linear probe of block 2's states tells."""
    born = [a for a in ATTRIBUTES][0]
    known = tuple(at_value(case.world.ask(p, born, 0)) for p in case.world.groups.retain)
    asked = tuple(at_value(case.world.ask(p, born, 0)) for p in case.world.groups.forget)
    return LinearProbe(layer=2).look(network, Request(forget=asked, retain=known))[0].value


def at_value(record: Passage) -> Passage:
    """The record with the words before the value in its prompt: the probe reads where the value is about to be said."""
    return replace(record, first=record.first + VALUE)


@dataclass(frozen=True)
class Case:
    """A seed's world, models, and the retrained model's truth ratios."""

    world: World
    request: Request
    models: dict[str, Network]
    ratios: list[float]

    @staticmethod
    def made(seed: int, folder: Path, study: Study = SMALL) -> Case:
        """The seed's models, trained once and kept beside the results."""
        world = World.drawn(seed, study.groups)
        request = world.request()
        models = {
            name: kept(folder / "models" / f"{seed}-{name}", partial(trained, world, saw, seed + add, study.training))
            for name, (saw, add) in MODELS.items()
        }
        ratios = TruthRatio().ratios(CachedModel(models["retrained"]), request.forget).tolist()
        return Case(world, request, models, ratios)


def kept(folder: Path, make: Callable[[], Network]) -> Network:
    """A model from its folder; made and written there where it is missing."""
    if not folder.exists():
        with whole_folder(folder) as place:
            make().save(place)
    return open_network(str(folder))


def run(
    folder: Path, seeds: list[int], only: list[str] | None, trials: list[Trial] = TRIALS, study: Study = SMALL
) -> None:
    """Make every row that the folder lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        path = folder / f"seed-{seed}.jsonl"
        done = {row["name"]: row for row in rows(path)}
        wanted = [t for t in trials if t.name not in done and (only is None or t.name in only)]
        if not wanted and set(MODELS) <= set(done):
            continue
        case = Case.made(seed, folder, study)
        if not set(MODELS) <= set(done):
            found = {name: judged(case.models[name], case) for name in MODELS}
            for name in (name for name in MODELS if name not in done):
                keep(path, shown({"name": name, **found[name]}, name, seed, found["retrained"]))
            done |= found
        for trial in wanted:
            row = {"name": trial.name, **tried(trial, case, seed, study)}
            keep(path, shown(row, trial.named(), seed, done["retrained"]))


def tried(trial: Trial, case: Case, seed: int, study: Study) -> dict[str, float]:
    """The trial's figures on the seed's original."""
    start = time.process_time()
    largest = [0.0]

    def on_event(event: Event) -> None:
        if isinstance(event, Step):
            largest[0] = max(largest[0], *event.gradient.values())

    method = trial.method(seed, study.batch)
    after = method(case.models["original"], case.world.request(trial.stand_in), on_event)
    return {
        **judged(network_of(after.plain(), trial.name), case),
        "gradient": largest[0],
        "seconds": time.process_time() - start,
    }


def shown(row: Row, method: str, seed: int, retrained: Row) -> Row:
    """The row with what `tools/docs.py` reads: what was tried, on what kind of model, and which targets it met."""
    if row["name"] == "retrained" or seed == TUNING:  # it meets its own level by definition; settings were chosen here
        return row
    return {**row, "method": method, "family": "language model", "seed": seed, "met": targets(row, retrained)}


COLUMNS = ("acc", "para", "ret", "r_para", "FQ", "MIA", "relearn", "probe", "said")


def targets(row: Row, retrained: Row) -> dict[str, bool]:
    """The seven things that forgetting should look like (issue of calibrated forgetting)."""
    return {
        "acc": row["acc"] <= 0.10,
        "para": row["para"] <= 0.15,
        "ret": row["ret"] >= 0.99,
        "r_para": row["r_para"] >= 0.95,
        "MIA": abs(row["MIA"] - retrained["MIA"]) <= 0.10,
        "FQ": row["FQ"] >= 0.5,
        "relearn": row["relearn"] - retrained["relearn"] <= 0.15,
    }


def show(folder: Path) -> None:
    """Write the tables of every figure, and the larger study's summary between its marks in docs/results.md."""
    small, large = read(folder), read(folder / "large")
    parts = [full(small)]
    if large:
        parts.append(f"The larger study, {LARGE.batch} answers forgotten:\n\n{full(large)}")
        between(folder.parent / "results.md", "larger", beside(small, large))
    page = folder.parent / "calibration-tables.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(page)


Seed = dict[str, Row]
"""A seed's rows by name."""


def read(folder: Path) -> list[Seed]:
    return [{row["name"]: row for row in rows(path)} for path in sorted(folder.glob("seed-*.jsonl"))]


def full(seeds: list[Seed]) -> str:
    """Median and range over the seeds, and how many of the seven targets each seed meets."""
    lines = ["| method | " + " | ".join(COLUMNS) + " | targets met, each seed |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in dict.fromkeys(name for seed in seeds for name in seed):
        found = [(seed[name], seed["retrained"]) for seed in seeds if name in seed]
        cells = [spread([row[column] for row, _ in found]) for column in COLUMNS]
        met = ", ".join(str(sum(targets(row, retrained).values())) for row, retrained in found)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {'' if name in ('original', 'retrained') else met} |")
    return "\n".join(lines)


def beside(small: list[Seed], large: list[Seed]) -> str:
    """The second retrained model and the best methods, at either size, seed by seed."""
    lines = [
        "| | answers forgotten | targets met of 7 | FQ | MIA less the retrained model's | "
        "relearning less the retrained model's | acc | para |",
        "|---" * 8 + "|",
    ]
    for name in ("retrained again", *AGAIN, *(trial.name for trial in LONGER)):
        for seeds, study in ((small, SMALL), (large, LARGE)):
            found = [(seed[name], seed["retrained"]) for seed in seeds if name in seed]
            if not found:
                continue
            cells = [
                [str(sum(targets(row, retrained).values())) for row, retrained in found],
                [f"{row['FQ']:.2g}" for row, _ in found],
                *([f"{row[key] - retrained[key]:.2f}" for row, retrained in found] for key in ("MIA", "relearn")),
                *([f"{row[key]:.2f}" for row, _ in found] for key in ("acc", "para")),
            ]
            lines.append(f"| {name} | {study.batch} | {' | '.join(map(', '.join, cells))} |")
    return "\n".join(lines)


def spread(found: list[float]) -> str:
    """Median and range."""
    form = "{:.0e}" if 0 < statistics.median(found) < 0.005 else "{:.2f}"
    middle = form.format(statistics.median(found))
    return middle if len(found) == 1 else f"{middle} ({form.format(min(found))} to {form.format(max(found))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "sweep", "large", "show"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*")
    parser.add_argument("--only", nargs="*")
    asked = parser.parse_args()
    if asked.what == "run":
        run(asked.folder, asked.seeds or [1, 2, 3, 4, 5], asked.only)
    elif asked.what == "sweep":
        run(asked.folder / "sweep", [TUNING], None, SWEEP)
    elif asked.what == "large":
        # Fresh seeds: neither the study's nor the one that settings were chosen on.
        again = [trial for trial in TRIALS if trial.name in AGAIN]
        run(asked.folder / "large", asked.seeds or [11, 12, 13], asked.only, [*again, *LONGER], LARGE)
    else:
        show(asked.folder)


if __name__ == "__main__":
    main()
