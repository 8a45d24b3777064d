"""The default on data that its settings were not chosen on, beside the published objectives and models retrained.

    python recipes/test_sets.py run DATA docs/test_sets.jsonl [--sets authors demo] [--seeds 0 1 2] [--methods default]
    python recipes/test_sets.py show docs/test_sets.jsonl          writes the tables of docs/test-sets.md

Ten worlds (`recipes/worlds.py`, `recipes/image_worlds.py`), each with a model, what it is to forget, and what shows
whether it did. Rows that the file has are not made again; models that were learnt are kept in MODELS. DATA is a
folder with tofu, pistol, rwku, cifar10, resnet_cifar10 and stories260k. Use one thread (OMP_NUM_THREADS=1) for the
small models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from image_worlds import IMAGE_WORLDS
from keeping import between, keep, rows
from worlds import TEXT_WORLDS, Places, Trial

from expunge import unlearn
from expunge.core.audit import Finding
from expunge.core.method import Method
from expunge.internals.examples import Tokenized
from expunge.notation.parse import parse
from expunge.report.report import Report
from expunge.run.choose import audits_of, choose_method, default_method
from expunge.run.unlearn import Task, complete, examine, examine_reference
from expunge.runtime.cached_model import CachedModel

WORLDS: dict[str, Callable[[int, Places], Trial]] = {**TEXT_WORLDS, **IMAGE_WORLDS}
NO_STOP = "stop=Stop(level=None, max_retain_increase=None, max_growth=None, max_forget_loss=None, every=1000)"
BEFORE = "Finetune(objective=0.5 * Settle() + RetainNLL() + 3.0 * RetainKL(), norms=False, adapter={adapter})"
OBJECTIVES = {
    "IHL + NLL": "InvertedHinge() + RetainNLL()",
    "NPO + NLL": "NPO() + RetainNLL()",
    "SimNPO + NLL": "SimNPO() + RetainNLL()",
    "GradDiff": "GradDiff()",
}
"""Sixty steps at 3e-4 with the bounded adapter (`Finetune`'s own), and nothing that ends them early."""
TWINS = "Finetune(objective=Unseen() + RetainNLL() + RetainKL(), learning_rate=0.001, steps=120, {stop}, norms=False)"
YARDSTICK = "retrained again"
METHODS = ("default", "Settle", "Unseen", *OBJECTIVES)
Row = dict[str, Any]


def method_of(name: str, trial: Trial, seed: int) -> Method | None:
    """What a row's name stands for in a world; None where it cannot be tried there."""
    texts = isinstance(trial.request.forget[0], Tokenized)
    family = "language" if texts else "vision"
    if name == "default":
        chosen = choose_method(default_method(family, bool(trial.request.holdout)), family)
        return chosen.method.with_seed(seed)
    if name == "Settle":
        text = BEFORE.format(adapter=trial.adapter)
    elif name == "Unseen":
        if trial.twins is None:
            return None
        text = TWINS.format(stop=NO_STOP)
    else:
        text = f"Finetune(objective={OBJECTIVES[name]}, adapter={trial.adapter}, {NO_STOP}, norms=False)"
    made = parse(text)
    assert isinstance(made, Method)
    return made.with_seed(seed)


def run(places: Places, out: Path, names: Sequence[str], seeds: Sequence[int], methods: Sequence[str]) -> None:
    """What is missing in the file."""
    for name in names:
        for seed in seeds:
            done = {row["method"] for row in rows(out) if (row["set"], row["seed"]) == (name, seed)}
            wanted = [method for method in methods if method not in done]
            if wanted:
                trial = WORLDS[name](seed, places)
                for method in wanted:
                    row = tried(trial, method, seed)
                    if row:
                        keep(out, {"set": name, "seed": seed, "method": method, "device": places.device, **row})


def tried(trial: Trial, name: str, seed: int) -> Row | None:
    """What a method did: every finding of the model before, after, and of the reference, and the verdict."""
    if name == YARDSTICK:
        return yardstick(trial)
    method = method_of(name, trial, seed)
    if method is None:
        return None
    request = trial.twins if name == "Unseen" and trial.twins else trial.request
    begun = time.monotonic()
    report = unlearn(trial.original, request, method, trial.audits, reference=trial.retrained)
    return {**values(report.findings), "said": said(report), "seconds": round(time.monotonic() - begun, 1)}


def yardstick(trial: Trial) -> Row | None:
    """The second retrained model in the place of a result."""
    if trial.again is None or trial.retrained is None:
        return None
    audits, reference = audits_of(trial.audits, ""), trial.retrained
    task = Task(trial.original, trial.request, audits, reference=lambda: reference).with_probes()
    before, again = (examine(CachedModel(model), task, "before") for model in (trial.original, trial.again))
    told, _ = examine_reference(task)
    found = complete(task, [*before, *told, *(finding.of("after") for finding in again)])
    return {**values(found), "said": {}, "seconds": 0.0}


def values(findings: Sequence[Finding]) -> Row:
    """Of the models before, after and the reference, and what a model that never saw the forget set gets."""
    made: Row = {model: {} for model in ("before", "after", "reference", "ideal")}
    for finding in findings:
        name = f"{finding.set}.{finding.audit}"
        made[finding.model][name] = round(finding.value, 5)
        if finding.model == "after" and finding.ideal is not None:
            made["ideal"][name] = round(finding.ideal, 5)
    return made


def said(report: Report) -> dict[str, str]:
    """The verdict's answers."""
    assert report.verdict is not None
    return {name: getattr(report.verdict, name).said for name in ("forgotten", "traceless", "unharmed")}


# What was asked of every world


def asked(row: Row) -> Iterator[tuple[str, float, bool]]:
    """What is asked of a row: its name, by how much it is missed or met, and whether it is met."""
    after, before, ideal = row["after"], row["before"], row["ideal"]
    right = "Accuracy" if "forget.Accuracy" in after else "Choice"
    for where in ("forget", "paraphrase", "forget_unseen"):
        for audit in (right, "Rouge") if where == "forget" else (right,):
            key = f"{where}.{audit}"
            if key in after and key in ideal:
                away = after[key] - ideal[key]
                yield f"{where} {audit}", away, abs(away) <= 0.05
    for audit in ("LossMembership", "MinK"):
        key = f"forget vs holdout.{audit}"
        if key in after:
            away = after[key] - row["reference"].get(key, 0.5)
            yield audit, away, abs(away) <= 0.10
    for where, worst in (
        ("retain", -0.01),
        ("neighbours", -0.02),
        ("neighbour", -0.02),
        ("general", -0.02),
        ("unseen", -0.02),
    ):
        key = f"{where}.{right}"
        if key in after:
            away = after[key] - before[key]
            yield f"{where} {right}", away, away >= (worst * before[key] if where == "retain" else worst)
    if "neutral.Perplexity" in after:
        away = after["neutral.Perplexity"] / before["neutral.Perplexity"] - 1
        yield "neutral perplexity", away, away <= 0.03


def besides(row: Row) -> str:
    """By how much the attack by whole distributions is off, of which nothing was asked; "–" where it was not read."""
    key = "forget vs holdout.MinKPlusPlus"
    return f"{row['after'][key] - row['reference'].get(key, 0.5):+.2f}" if key in row["after"] else "–"


def show(path: Path) -> None:
    """For each world a table: every method's distance from what was asked, seed by seed; missed in bold."""
    found = list(rows(path))
    parts = [summary(found)]
    for name in dict.fromkeys(row["set"] for row in found):
        mine = [row for row in found if row["set"] == name]
        columns = list(dict.fromkeys(column for row in mine for column, _, _ in asked(row)))
        extra = any(besides(row) != "–" for row in mine)
        heads = [*columns, *(["Min-K++, not asked"] if extra else []), "answers"]
        lines = [f"**{name}**", "", f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for method in methods_in(mine):
            each = [row for row in mine if row["method"] == method]
            cells = [[cell(row, column) for row in each] for column in columns]
            cells += [[besides(row) for row in each]] if extra else []
            answers = [" ".join(SHORT[said] for said in row["said"].values()) for row in each]
            lines.append(f"| {method} | {' | '.join(map(', '.join, cells))} | {', '.join(answers)} |")
        parts.append("\n".join(lines))
    between(path.parent / "test-sets.md", "test-sets", "\n\n".join(parts))


SHORT = {"yes": "yes", "no": "no", "not measured": "?"}


def methods_in(found: Sequence[Row]) -> list[str]:
    """The methods that were tried, in the order of the tables."""
    return [method for method in (YARDSTICK, *METHODS) if any(row["method"] == method for row in found)]


def cell(row: Row, column: str) -> str:
    for name, away, met in asked(row):
        if name == column:
            text = f"{100 * away:+.1f} %" if name == "neutral perplexity" else f"{away:+.2f}"
            return text if met else f"**{text}**"
    return "–"


def summary(found: Sequence[Row]) -> str:
    """How many of what was asked each method met in each world, and in how many worlds all of it."""
    worlds = list(dict.fromkeys(row["set"] for row in found))
    lines = ["| | " + " | ".join(worlds) + " |", "|---" * (len(worlds) + 1) + "|"]
    for method in methods_in(found):
        cells = []
        for world in worlds:
            each = [row for row in found if (row["set"], row["method"]) == (world, method)]
            met = [[met for _, _, met in asked(row)] for row in each]
            cells.append(", ".join(f"{sum(one)} of {len(one)}" for one in met) or "–")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument(
        "--models", type=Path, default=Path("test-set-models"), help="where models that were learnt are kept"
    )
    running.add_argument("--device", default="cpu", help="of SmolLM2")
    running.add_argument("--sets", nargs="*", choices=list(WORLDS), default=list(WORLDS))
    running.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    running.add_argument("--methods", nargs="*", choices=[YARDSTICK, *METHODS], default=[YARDSTICK, *METHODS])
    parts.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        run(Places(given.data, given.models, given.device), given.out, given.sets, given.seeds, given.methods)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
