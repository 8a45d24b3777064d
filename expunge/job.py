"""The main job: load, audit, forget, merge, read back, audit again, and report; all of it appears, or nothing does."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import torch

from expunge.core.adapter import Adapter
from expunge.core.audit import Audit, Finding
from expunge.core.errors import DataRefused, EnvironmentRefused, ModelRefused, RunFailed, UsageRefused
from expunge.core.files import whole_folder, write_manifest, write_text
from expunge.core.model import Network, Remembered
from expunge.core.notation import parse, parse_list, write
from expunge.core.request import Request
from expunge.inputs import Inputs
from expunge.models.auto import open_network
from expunge.models.language import LanguageModel
from expunge.report import html
from expunge.report.limits import limits
from expunge.report.record import cost, head, row, samples, verdict, with_ideals
from expunge.report.verdict import Rule
from expunge.train.finetune import Finetune

AUDITS = {
    "language": "Choice, Probability, Loss, ExactMatch, Rouge, LossMembership, MinK",
    "vision": "Accuracy, Probability, Loss, LossMembership",
}
Tell = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class Job:
    """One request to one model."""

    model: str
    inputs: Inputs
    out: Path
    method: str = "Finetune()"
    audits: str | None = None
    reference: str | None = None
    seed: int | None = None
    device: str = "cpu"
    show_text: bool = False
    require: tuple[str, ...] = ()
    line: str = ""
    """What was typed, for the report."""


@dataclass
class Clock:
    """Seconds of each part of a job."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def method_of(job: Job) -> Finetune:
    """The method that the job's text describes, with the job's seed."""
    made = parse(job.method)
    if not isinstance(made, Finetune):
        raise UsageRefused(f"--method '{job.method}' is not a method. Give Finetune(...); `expunge list methods`.")
    return made if job.seed is None else replace(made, seed=job.seed)


def audits_of(text: str) -> list[Audit]:
    """The audits that a text lists."""
    made = parse_list(text)
    wrong = [repr(thing) for thing in made if not isinstance(thing, Audit)]
    if wrong:
        raise UsageRefused(f"--audits: {', '.join(wrong)} is not an audit. `expunge list audits` shows them.")
    return [audit for audit in made if isinstance(audit, Audit)]


def forget(job: Job, tell: Tell) -> dict[str, Any]:
    """Forget, and write `job.out`. Returns the report; `verdict.met` says whether the thresholds were met."""
    method, rules = method_of(job), [Rule.parse(text) for text in job.require]
    audits = audits_of(job.audits) if job.audits else None
    check_out(job)
    with lock(job.out):
        clock = Clock()
        network, request = opened(job, clock, tell)
        check_room(network, job.out)
        with whole_folder(job.out) as folder:
            return _forget(replace(job, out=folder), job, method, audits, rules, network, request, clock, tell)


def _forget(
    job: Job,
    asked: Job,
    method: Finetune,
    audits: list[Audit] | None,
    rules: list[Rule],
    network: Network,
    request: Request,
    clock: Clock,
    tell: Tell,
) -> dict[str, Any]:
    family = family_name(network)
    audits = audits or audits_of(AUDITS[family])
    check_rules(rules, audits, request)
    findings: list[Finding] = []
    before = Remembered(network)
    with clock.part("audit before"):
        findings += examine(before, request, audits, "before", tell)
    if job.reference:
        with clock.part("audit reference"):
            findings += examine(Remembered(open_network(job.reference, job.device)), request, audits, "reference", tell)
    run = Log(job.out / "steps.jsonl", tell)
    with clock.part("forget"):
        adapted = _train(method, network, request, run, asked)
    with clock.part("merge and save"):
        tell({"kind": "phase", "what": "Merging and saving"})
        merge = save(job.out, method.adapter, network, adapted, request)
        del adapted
    with clock.part("read back"):
        after = Remembered(open_network(str(job.out / "model"), job.device))
    with clock.part("audit after"):
        findings += examine(after, request, audits, "after", tell)
    findings = with_ideals(findings)
    report = {
        **about(asked, network, request, family),
        "method": write(method),
        "findings": [row(f) for f in findings],
        "run": {**run.facts, "merge": merge},
        "verdict": verdict(rules, findings, run.facts),
        "cost": cost(clock.seconds, run.size),
        "limits": limits(request, family, bool(job.reference), merge["format"]),
        "samples": samples(before, after, request, job.show_text),
    }
    write_report(job.out, report, run.lines)
    write_manifest(job.out, base=report["model"]["fingerprint"], request=report["request"]["fingerprint"])
    return report


def audit(job: Job, tell: Tell) -> dict[str, Any]:
    """Audit a model as it is, and write `report.json` and `report.html` to `job.out`."""
    audits = audits_of(job.audits) if job.audits else None
    rules = [Rule.parse(text) for text in job.require]
    check_out(job)
    with lock(job.out):
        clock = Clock()
        network, request = opened(job, clock, tell)
        family = family_name(network)
        audits = audits or audits_of(AUDITS[family])
        check_rules(rules, audits, request)
        model = Remembered(network)
        with clock.part("audit"):
            # Nothing was changed, so the model audited is both: its rules read it as `after`.
            findings = examine(model, request, audits, "before", tell)
        if job.reference:
            with clock.part("audit reference"):
                other = Remembered(open_network(job.reference, job.device))
                findings += examine(other, request, audits, "reference", tell)
        findings = with_ideals(findings)
        outcomes = [rule.read([*findings, *(f.of("after") for f in findings if f.model == "before")]) for rule in rules]
        report = {
            **about(job, network, request, family),
            "method": "",
            "findings": [row(f) for f in findings],
            "cost": cost(clock.seconds, 0),
            "limits": limits(request, family, bool(job.reference), ""),
            "samples": samples(model, None, request, job.show_text),
        }
        if outcomes:
            report["verdict"] = {"met": all(o.met for o in outcomes), "rules": [asdict(o) for o in outcomes]}
        with whole_folder(job.out) as folder:
            write_report(folder, report, [])
            write_manifest(folder, base=report["model"]["fingerprint"], request=report["request"]["fingerprint"])
        return report


def opened(job: Job, clock: Clock, tell: Tell) -> tuple[Network, Request]:
    """The job's model and request; the files are checked before the model is loaded."""
    records = job.inputs.read()
    with clock.part("load"):
        tell({"kind": "phase", "what": f"Loading {job.model}"})
        network = open_network(job.model, job.device)
        return network, records.request(network)


class Log:
    """Writes a run's events to a file as they come, and keeps what the report needs of them."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self.path, self.tell = path, tell
        self.lines: list[dict[str, object]] = []
        self.facts: dict[str, Any] = {}
        self.size = 0

    def __call__(self, event: dict[str, object]) -> None:
        kind = event["kind"]
        if kind in ("step", "check"):
            self.lines.append(event)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        elif kind == "start":
            moved, whole = int(str(event["trainable"])), int(str(event["parameters"]))
            self.facts["adapter"] = {"layers": event["layers"], "trainable": moved, "share": moved / whole}
            self.facts |= {key: event[key] for key in ("level", "slack", "level_source", "budget")}
        elif kind == "end":
            self.facts |= {key: value for key, value in event.items() if key != "kind"}
        self.size += int(str(event.get("size", 0)))
        self.tell(event)


def examine(model: Remembered, request: Request, audits: Sequence[Audit], name: str, tell: Tell) -> list[Finding]:
    """Every audit's findings about one model, named before, after or reference."""
    tell({"kind": "phase", "what": f"Auditing the model {name}"})
    # One pass over everything, so that all options of a question share its prompt.
    model.answers([text for e in request.sets().values() for one in e for text in (one, *one.alternatives)])
    found: list[Finding] = []
    for each in audits:
        made = [finding.of(name) for finding in each(model, request)]
        if not made and name == "before":
            tell({"kind": "phase", "what": f"{each.name} could not be asked: no set has what it needs"})
        found += made
    if not found:
        raise DataRefused("No audit could be asked of these records. Choice needs options, membership a holdout set.")
    return found


def _train(method: Finetune, network: Network, request: Request, run: Log, asked: Job) -> Network:
    """Run the method; where it fails, keep the last good adapter beside the place that the result would have had."""
    try:
        return method(network, request, run)
    except RunFailed as error:
        if isinstance(error.last_good, Network):
            kept = asked.out.with_name(f"{asked.out.name}.failed")
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            method.adapter.save(error.last_good, kept / "adapter")
            shutil.copy(run.path, kept / "steps.jsonl")
            raise RunFailed(f"{error} The last good adapter and the steps are in {kept}.") from error
        raise


def save(folder: Path, adapter: Adapter, network: Network, adapted: Network, request: Request) -> dict[str, Any]:
    """Write adapter and merged model; how far the merged model's answers are from the adapter's."""
    adapter.save(adapted, folder / "adapter")
    if (folder / "adapter").is_dir():
        write_manifest(folder / "adapter", base=network.fingerprint())
    merged = adapter.merge(adapted)
    broken = [name for name, p in merged.module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelRefused(f"The merged model holds NaN or Inf in {broken[0]}. Nothing was written.")
    group = next(network.batches(request.forget))
    some = [request.forget[k] for k in group[:8]]
    with torch.inference_mode():
        apart = (merged.predict(some).logits - adapted.predict(some).logits).abs().max()
        moved = (merged.predict(some).logits - network.predict(some).logits).abs().max()
    merged.save(folder / "model")
    dtype = next(merged.module.parameters()).dtype
    return {
        "max_logit_difference": float(apart),
        "max_logit_change": float(moved),
        "format": f"{str(dtype).removeprefix('torch.')} safetensors",
    }


def about(job: Job, network: Network, request: Request, family: str) -> dict[str, Any]:
    """The report's head."""
    sources = {name: path.name for name, path in job.inputs.paths.items()}
    return head(job.line, job.model, family, network, request, sources, method_of(job).seed)


def write_report(folder: Path, report: dict[str, Any], steps: list[dict[str, object]]) -> None:
    """`report.json` and `report.html`."""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "report.html", html.render(report, steps))


def family_name(network: Network) -> str:
    """`language` or `vision`."""
    return "language" if isinstance(network, LanguageModel) else "vision"


def check_rules(rules: list[Rule], audits: Sequence[Audit], request: Request) -> None:
    """Refuse a rule about a set or an audit that this job does not have, before the work rather than after."""
    sets, names = [*request.sets(), "forget vs holdout"], [audit.name for audit in audits]
    for rule in rules:
        if rule.set not in sets:
            raise UsageRefused(f"--require '{rule.text}': there is no set '{rule.set}'. Sets: {', '.join(sets)}.")
        if rule.audit not in names:
            raise UsageRefused(f"--require '{rule.text}': {rule.audit} is not run. Audits: {', '.join(names)}.")


def check_out(job: Job) -> None:
    """Refuse an output folder that holds anything, or that lies in the model's."""
    out = job.out
    try:
        _check_out(job, out)
    except OSError as error:
        raise UsageRefused(f"--out {str(out)[:80]}: {error.strerror or 'not a usable path'}. Give another.") from error


def _check_out(job: Job, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageRefused(f"{out} is not empty. Give a new folder with --out; nothing is ever written over.")
    if len(job.model) < 256 and Path(job.model).is_dir() and out.resolve().is_relative_to(Path(job.model).resolve()):
        raise UsageRefused(f"{out} lies in the model's folder, which is never written to. Give another --out.")
    parent = next(p for p in out.absolute().parents if p.exists())
    if not parent.is_dir():
        raise UsageRefused(f"{parent} is a file, so {out} cannot be made below it. Give another --out.")
    if out.absolute() == Path.cwd():
        raise UsageRefused("--out is the current folder, which cannot be replaced. Give a new one.")
    if not os.access(parent, os.W_OK):
        raise EnvironmentRefused(f"{parent} cannot be written to. Give another --out.")


def check_room(network: Network, out: Path) -> None:
    """Refuse a disk that cannot hold the result."""
    parent = next(p for p in out.absolute().parents if p.exists())
    need = 1.1 * sum(t.numel() * t.element_size() for t in network.module.state_dict().values())
    free = shutil.disk_usage(parent).free
    if free < need:
        raise EnvironmentRefused(f"{parent} has {free / 1e6:.0f} MB free; the result needs {need / 1e6:.0f} MB.")


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """One run for each output folder at a time."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f".{out.name}.lock"
    held = filelock.FileLock(path, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout as error:
        said = f"{out}: another run holds it (lock {path}). Wait for it, or give another --out."
        raise EnvironmentRefused(said) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()
