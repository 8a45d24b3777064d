"""Sweeps: one request, many settings and seeds; ranked on the validation half of the records, shown on both.

expunge.sweep(model, request, "Finetune(objective=NPO() + RetainKL(), stop=None)",
              over={"learning_rate": [1e-5, 1e-4]}, seeds=(0, 1, 2), out="swept")
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from expunge.core.audit import Audit, Finding
from expunge.core.method import Method
from expunge.core.model import Model
from expunge.core.request import Request
from expunge.errors import THRESHOLDS_MISSED, RunFailed, UsageRefused
from expunge.events import Note, OnEvent, ignore_event
from expunge.notation.parse import write
from expunge.notation.recipes import recipe_of
from expunge.notation.typed_json import to_json
from expunge.notation.variants import Variant, variants
from expunge.report.record import VERSION, now
from expunge.report.report import Report
from expunge.report.required import Rule, check_rules, read_as_meant
from expunge.report.rules import Asked, Miss
from expunge.report.sweep import NEAREST, SCHEMA, SWEEP, Figures, Number, Sweep, Tried, rank
from expunge.report.verdict import HALF
from expunge.run.choose import audits_of, choose_method
from expunge.run.families import family_name
from expunge.run.halves import HALVES, SPLIT, Half, Halves
from expunge.run.unlearn import Task, forget, in_memory
from expunge.runtime.atomic_files import MANIFEST, check_manifest, write_text

Ended = tuple[Report | None, int]
"""The report of a run, None where it failed, and the exit code that it alone would have had."""


@dataclass(frozen=True)
class Trial:
    """A run that is to be made."""

    variant: Variant
    seed: int | None

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return self.variant.name if self.seed is None else f"{self.variant.name}_seed-{self.seed}"


def trials(method: str, family: str, over: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Trial]:
    """Every setting with every seed; a recipe's name stands for what it runs. Raises `UsageRefused`."""
    recipe = recipe_of(method, family)
    lines = variants(recipe.method if recipe else method, over)
    return [Trial(line, seed) for line, seed in product(lines, seeds or (None,))]


@dataclass(frozen=True)
class By:
    """A rule of the user's: one audit on one set."""

    set: str
    audit: str

    @staticmethod
    def read(text: str, asked: Asked) -> By:
        """The finding that "SET.AUDIT" names. Raises `UsageRefused` where there will be none."""
        audits = tuple(each for each in asked.measures if isinstance(each, Audit))
        try:
            rules, _ = read_as_meant([Rule.parse(f"{text} <= 0")], audits, asked.request)
            check_rules(rules, audits, (), asked.request)
        except UsageRefused as error:
            raise UsageRefused(str(error).replace(" <= 0'", "'").replace("--require", "--by")) from error
        return By(rules[0].set, rules[0].audit)

    def of(self, findings: Sequence[Finding]) -> float:
        """The number of a run, the least of which is the best; infinite where it was not measured."""
        found = next((f for f in findings if (f.set, f.audit, f.model) == (self.set, self.audit, "after")), None)
        if found is None or (found.better == "ideal" and found.ideal is None):
            return math.inf
        if found.better == "ideal" and found.ideal is not None:
            return abs(found.value - found.ideal)
        return found.value if found.better == "lower" else -found.value

    def __str__(self) -> str:
        return (
            f"By {self.set}.{self.audit}: the nearest to its ideal, or else the lowest or highest, whichever is good."
        )


@dataclass(frozen=True)
class Ranking:
    """How runs of one request are ranked."""

    halves: Halves
    by: By | None = None

    @staticmethod
    def of(task: Task, by: str | None) -> Ranking:
        """Raises a `Refusal` where nothing could rank the runs."""
        asked = task.to_judge
        if by is None and task.reference is None and not task.request.holdout:
            task.on_event(
                Note(
                    "Warning: what a model that never saw the records gets is hardly known, so that little but harm "
                    "can rank the runs. Give --holdout or --reference, or --by SET.AUDIT"
                )
            )
        return Ranking(Halves.of(asked), None if by is None else By.read(by, asked))

    def read(self, trial: Trial, ended: Ended) -> Tried:
        """What became of a run."""
        report, code = ended
        own = (trial.folder, trial.variant.settings, trial.seed, code)
        if report is None:
            return Tried(*own, {}, None, None)
        validation, test = (self.figures(report.findings, half) for half in HALVES)
        verdict = {str(name): str(answer.said) for name, answer in report.verdict or ()}
        return Tried(*own, verdict, validation, test, tuple(self.numbers(report.findings)))

    def figures(self, findings: Sequence[Finding], half: Half) -> Figures:
        """What the rule reads on a half."""
        found = self.halves.misses(findings, half)
        harms = [miss for miss in found if miss.answer == "unharmed"]
        away = [miss.tolerances for miss in found if miss.answer != "unharmed"]
        half_of = self.halves.findings(findings, half)
        losses = {f.model: f.value for f in half_of if (f.set, f.audit) == ("retain", "Loss")}
        if "before" in losses and "after" in losses:  # what every run must keep to, with a reference too
            harms.append(Miss("unharmed", "retain.Loss", (losses["after"] - losses["before"]) / HALF))
        by = self.by.of(half_of) if self.by else None
        return Figures(max((miss.excess for miss in harms), default=0.0), statistics.fmean(away) if away else None, by)

    def numbers(self, findings: Sequence[Finding]) -> Iterator[Number]:
        """Every number of the model after, on both halves."""
        validation, test = (
            {(f.set, f.audit): f for f in self.halves.findings(findings, half) if f.model == "after"} for half in HALVES
        )
        for key in validation | test:
            yield Number(*key, *_value(validation.get(key)), *_value(test.get(key)))


def _value(finding: Finding | None) -> tuple[float | None, float | None]:
    """A finding's value and ideal."""
    return (None, None) if finding is None else (finding.value, finding.ideal)


def make_all(asked: Sequence[Trial], make: Callable[[Trial], Ended], on_event: OnEvent) -> list[tuple[Trial, Ended]]:
    """Make every run, one after the other."""
    made = []
    for place, trial in enumerate(asked, start=1):
        on_event(Note(f"Run {place} of {len(asked)}: {trial.folder}"))
        made.append((trial, make(trial)))
    facts = {(r.original.fingerprint, r.request.fingerprint) for _, (r, _) in made if r is not None}
    if len(facts) > 1:
        raise UsageRefused("The runs are not of one model and the same records: a file has changed. Give a new --out.")
    return made


def table(ranking: Ranking, made: Sequence[tuple[Trial, Ended]], method: str, command: str) -> Sweep:
    """The runs, ranked."""
    return Sweep(
        schema=SCHEMA,
        expunge=VERSION,
        created=now(),
        command=command,
        method=method,
        rule=str(ranking.by) if ranking.by else NEAREST,
        split=SPLIT,
        records=ranking.halves.sizes(),
        runs=rank([ranking.read(trial, ended) for trial, ended in made]),
    )


def write_table(told: Sweep, out: Path) -> None:
    """Write `sweep.json` beside the runs."""
    write_text(out / SWEEP, json.dumps(to_json(told), indent=1))


def sweep(
    model: Model,
    request: Request,
    method: str,
    over: Mapping[str, Sequence[object]],
    audits: str | Sequence[Audit] | None = None,
    *,
    out: Path | str,
    seeds: Sequence[int] = (),
    by: str | None = None,
    reference: Model | None = None,
    added_probes: bool = True,
    on_event: OnEvent = ignore_event,
) -> Sweep:
    """Make a model forget by one method with several settings and seeds, each run a folder of `out`; the runs, ranked.

    `over` has the values of each setting, as objects or in the notation: {"learning_rate": [1e-5, 1e-4]}. The rule that
    ranks reads the validation half of the records alone; `by`, such as "forget.Loss", replaces it. A run that is in its
    folder already, and was of the same model, records and method, is read and not made again.
    """
    place, texts = Path(out), {name: [_say(value) for value in values] for name, values in over.items()}
    asked = trials(method, family_name(model), texts, seeds)
    ground = Task(
        model=model,
        request=request,
        audits=audits_of(audits, family_name(model)),
        reference=None if reference is None else lambda: reference,
        on_event=on_event,
    )
    against = "" if reference is None else f" reference={reference.fingerprint()}"
    ready: dict[str, tuple[Task, Method]] = {}
    for trial in asked:
        task, fitted = ground.with_method(choose_method(trial.variant.line, family_name(model), trial.seed))
        task = replace(task, command=f"{task.command} audits={write(task.audits)}{against}")
        ready[trial.folder] = task.with_probes() if added_probes else task, fitted
    ranking = Ranking.of(ready[asked[0].folder][0], by)

    def make(trial: Trial) -> Ended:
        task, fitted = ready[trial.folder]
        report = _read(place / trial.folder, task, fitted)
        try:
            report = report or _make(task, fitted, place / trial.folder)
        except RunFailed as error:
            on_event(Note(error.line()))
            return None, error.code
        return report, 0 if report.is_met else THRESHOLDS_MISSED

    place.mkdir(parents=True, exist_ok=True)
    told = table(ranking, make_all(asked, make, on_event), method, f"sweep(model, request, {method!r}, {texts!r})")
    write_table(told, place)
    return told


def _say(value: object) -> str:
    """A value in the notation; a text is in it already."""
    return value if isinstance(value, str) else write(value)


def _make(task: Task, method: Method, folder: Path) -> Report:
    report = forget(task, method, lambda told: in_memory(task, method, told))
    report.save(folder)
    return report


def _read(folder: Path, task: Task, method: Method) -> Report | None:
    """The report of a run that is there already; None where there is none. Refuses one of something else."""
    if not (folder / MANIFEST).is_file():
        return None
    check_manifest(folder)
    report = Report.read(folder)
    found = (report.method, report.command, report.original.fingerprint, report.request.fingerprint)
    if found != (write(method), task.command, *task.facts()):
        raise UsageRefused(f"{folder} is of another method, model, request or audits. Give another `out`.")
    return report
