"""The report of a run or an audit: what was asked, measured, decided and spent, as types that are also its file format.

`report.json` holds the fields of `Report`, `steps.jsonl` its steps; docs/report.schema.json is made from this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.core.adapter import Adapted
from expunge.core.audit import BOTH, Finding
from expunge.core.model import Model
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.events import Checked, Step
from expunge.notation.typed_json import MisfitError, event_from_json, event_to_json, from_json, to_json
from expunge.primitives.meanings import Meaning, SetName
from expunge.primitives.merged_adapter import MergedAdapter
from expunge.primitives.repeat import Intake, Repeat
from expunge.report.answers import Verdict
from expunge.report.by_class import ClassCount, Placed
from expunge.report.confusion import Confused
from expunge.report.run import Run
from expunge.runtime.atomic_files import whole_folder, write_manifest, write_text

SCHEMA = 3
"""Raised when a key changes its meaning."""
REPORT, PAGE, STEPS = "report.json", "report.html", "steps.jsonl"
HELD: Mapping[str, bool] = {"json": False}
"""Fields that `report.json` does not have."""


@dataclass(frozen=True)
class TokenizerFacts:
    """How a language model's texts become tokens: what a mistaken one changes without a word."""

    digest: str
    """SHA-256 of the tokenizer's vocabulary and rules."""
    template: str | None
    """SHA-256 of its chat template; None where it has none."""
    bos: int | None
    """Token that begins a text."""
    eos: int | None
    """Token that ends a text."""
    begins: bool
    """Whether a question begins with that token."""
    ends: int | None
    """Last token of an answer, which is trained and asked like the others."""
    sample: tuple[int, ...]
    """First tokens of a question that is no record: "What is the capital of France?"."""


@dataclass(frozen=True)
class Original:
    """The model that was given."""

    name: str
    family: str
    """language, vision, ..."""
    architecture: str
    parameters: int | None
    """None for a model without weights of its own."""
    fingerprint: str
    """SHA-256 over names, types and bytes of all weights."""
    tokenizer: TokenizerFacts | None = None
    """None for other models than language models."""
    adapter: MergedAdapter | None = None
    """What was merged into it as it was opened; the fingerprint is that of the merged weights."""


@dataclass(frozen=True)
class SetFacts:
    """One set of the request."""

    examples: int
    rows: int
    source: str
    """The file's name, or "records"."""
    intake: Intake | None = None
    """What became of its records; null where the examples were given."""
    meaning: Meaning | None = None
    """What it holds, as declared or by its name; null where neither says so, and it is taken for what should stay."""


@dataclass(frozen=True)
class RequestFacts:
    """What was to be forgotten, retained and asked."""

    fingerprint: str
    """SHA-256 over the contents of all sets; order and ids do not matter."""
    unit: str
    """What a row is: tokens, images."""
    sets: dict[str, SetFacts]
    duplicates: dict[str, int]
    """Examples that repeat an earlier one of their set, and count."""
    repeats: tuple[Repeat, ...]
    """Where records of one set nearly repeat another's."""


@dataclass(frozen=True)
class Environment:
    """Where it was done."""

    python: str
    torch: str
    transformers: str
    peft: str
    device: str
    threads: int


@dataclass(frozen=True)
class Cost:
    """What it took."""

    seconds: dict[str, float]
    """By part."""
    total: float
    """Seconds of all parts."""
    tokens: int
    """Tokens (or images) trained on."""
    peak_memory_bytes: int
    """The largest memory that the process held."""


@dataclass(frozen=True)
class Sample:
    """What the models wrote for a prompt; the texts only where they were asked for."""

    set: str
    id: str
    prompt: str | None = None
    answer: str | None = None
    before: str | None = None
    after: str | None = None
    reference: str | None = None
    picture: str | None = None
    """Of an image: a thumbnail as a data: address; the texts are then names of classes."""


@dataclass(frozen=True)
class Samples:
    """Some prompts of each set."""

    shown: bool = False
    """Whether their texts were asked for."""
    items: tuple[Sample, ...] = ()

    def hide(self) -> Samples:
        """The same without texts and pictures."""
        return Samples(False, tuple(Sample(item.set, item.id) for item in self.items))


@dataclass(frozen=True)
class RecipeFacts:
    """The published recipe that was run."""

    name: str
    """As it is named, with the settings that were changed."""
    source: str
    """Where its numbers come from, and what is not as published."""


@dataclass(frozen=True)
class Ancestor:
    """An earlier request, of which the model that forgets now is the result."""

    name: str
    """Its folder's name."""
    set: str
    """The probe that what it forgot is asked as."""
    forgotten: int
    """How many records it forgot."""
    created: str
    original: str
    """Fingerprint of the model that it began with."""
    result: str
    """Fingerprint of the model that it made."""
    followed: bool
    """Whether the next request, or this one, began with that model."""


@dataclass(frozen=True)
class Report:
    """Everything about a run of `unlearn`, or about an audit: then `method` is empty, and nothing was changed."""

    schema: int
    expunge: str
    """The version that wrote it."""
    created: str
    """UTC."""
    command: str
    """The line that made it."""
    original: Original
    result: str | None
    """Fingerprint of the model after forgetting; None in an audit."""
    request: RequestFacts
    environment: Environment
    method: str
    """In the notation, every setting written out."""
    findings: tuple[Finding, ...]
    run: Run | None
    """None in an audit."""
    verdict: Verdict | None
    """None in an audit without rules."""
    cost: Cost
    limits: tuple[str, ...]
    """What the result does not show."""
    samples: Samples
    recipe: RecipeFacts | None = None
    """The published recipe that the method is; None where it was written out."""
    earlier: tuple[Ancestor, ...] = ()
    """Earlier requests that were asked again, in their order."""
    confusion: tuple[Confused, ...] = ()
    """Of images: how often which class was named, for the forgotten classes and their neighbours."""
    classes: tuple[ClassCount, ...] = ()
    """Of images: how many of each class are named rightly, in the sets that no training read."""
    places: tuple[Placed, ...] = ()
    """Of images: where some lie in a plane of the representation."""
    steps: tuple[Step | Checked, ...] = field(default=(), metadata=HELD)
    texts: Samples = field(default=Samples(), metadata=HELD, compare=False, repr=False)
    """The samples with their texts, whether they are shown or not."""
    model: Model | None = field(default=None, metadata=HELD, compare=False, repr=False)
    """The model after forgetting, without adapter, where it is in memory."""
    adapted: Adapted | None = field(default=None, metadata=HELD, compare=False, repr=False)
    """The same with its adapter, where the method has one."""

    @property
    def is_met(self) -> bool:
        """Whether no answer of the verdict is no."""
        return self.verdict is None or self.verdict.is_met

    def find(self, name: str, model: str | None = None) -> Finding:
        """The finding that "SET.AUDIT" names, such as "retain.Loss": of the model after, or before in an audit.

        "forget.MinK" is "forget vs holdout.MinK", since there is no other. Raises `UsageRefused`, with what there is.
        """
        where, _, audit = name.rpartition(".")
        wanted = model or ("after" if self.run else "before")
        known = {(f.set, f.audit): f for f in self.findings if f.model == wanted}
        found = known.get((where, audit)) or (known.get((BOTH, audit)) if where == "forget" else None)
        if found is None:
            there = ", ".join(f"{set_}.{each}" for set_, each in known) or "none"
            raise UsageRefused(f"The report has no finding '{name[:100]}' of the model {wanted}. There are: {there}.")
        return found

    def write(self, folder: Path) -> None:
        """Write `report.json`, `report.html` and, where there are steps, `steps.jsonl` into a folder that is there.

        A model and an adapter that are in it get a card each.
        """
        from expunge.report import card, html  # the page draws with matplotlib, which nothing else here needs

        card.write_cards(self, folder)
        write_text(folder / REPORT, json.dumps(to_json(self), indent=1))
        write_text(folder / PAGE, html.render(self))
        if self.steps:
            write_text(folder / STEPS, "".join(json.dumps(event_to_json(step)) + "\n" for step in self.steps))

    def save(self, folder: Path | str) -> Path:
        """Write report, page, steps and manifest, and model and adapter where they are held, atomically; the folder.

        Raises `UsageRefused` where there is anything at that place.
        """
        target = Path(folder)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageRefused(f"{target} is not empty. Give a new folder; nothing is ever written over.")
        with whole_folder(target) as inside:
            if self.model is not None:
                self.model.save(inside / "model")
            if self.adapted is not None:
                save_adapter(self.adapted, inside, self.original.fingerprint)
            self.write(inside)
            self.sign(inside)
        return target

    def sign(self, folder: Path) -> None:
        """Write the manifest of a folder that holds all of the report's files."""
        write_manifest(folder, base=self.original.fingerprint, request=self.request.fingerprint)

    @staticmethod
    def read(folder: Path | str) -> Report:
        """The report that a folder holds, without its model.

        Raises `DataRefused` where there is none, and `ModelRefused` where it does not fit the schema.
        """
        path, steps = Path(folder) / REPORT, Path(folder) / STEPS
        [top] = _objects(path, whole=True)
        lines = _objects(steps, whole=False) if steps.is_file() else []
        try:
            report = from_json(Report, top)
            if report.schema != SCHEMA:
                raise MisfitError(f"schema must be {SCHEMA}")
        except MisfitError as error:
            raise ModelRefused(f"{path}: {error}, so it is no report of this version of expunge.") from error
        told = tuple(_step(line, f"{steps}, line {n}") for n, line in enumerate(lines, start=1))
        return replace(_name_sets(report), steps=told)


def save_adapter(adapted: Adapted, folder: Path, base: str) -> bool:
    """Write `adapter/` with a manifest that names its base model; whether the adapter has a form of its own."""
    adapted.save_adapter(folder / "adapter")
    if not (folder / "adapter").is_dir():
        return False
    write_manifest(folder / "adapter", base=base)
    return True


def _name_sets(report: Report) -> Report:
    """The report with the name of each set saying what the set holds, as it did when the report was made."""
    sets = {SetName(name, of.meaning) if of.meaning else name: of for name, of in report.request.sets.items()}
    named = {str(name): name for name in sets}
    return replace(
        report,
        request=replace(report.request, sets=sets),
        findings=tuple(replace(f, set=named.get(f.set, f.set)) for f in report.findings),
        samples=replace(
            report.samples, items=tuple(replace(s, set=named.get(s.set, s.set)) for s in report.samples.items)
        ),
    )


def _step(line: dict[str, Any], where: str) -> Step | Checked:
    try:
        event = event_from_json(line)
        if isinstance(event, Step | Checked):
            return event
        raise MisfitError("kind must be step or check")
    except MisfitError as error:
        raise ModelRefused(f"{where}: {error}, so it is no line of this version of expunge.") from error


def _objects(path: Path, whole: bool) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, or one a line."""
    try:
        text = path.read_text(encoding="utf-8")
        objects = [json.loads(part) for part in ([text] if whole else text.splitlines())]
    except OSError as error:
        raise DataRefused(f"{path} is not there. Give the folder of a finished run.") from error
    except (ValueError, RecursionError) as error:
        raise DataRefused(f"{path} is not JSON. Give the folder of a finished run.") from error
    if not all(isinstance(one, dict) for one in objects):
        raise DataRefused(f"{path} holds no JSON object. Give the folder of a finished run.")
    return objects
