"""The main job: load, audit, forget, merge, read back, audit again, and report; all of it appears, or nothing does."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from expunge.core.adapter import Adapter
from expunge.core.audit import Audit, Finding
from expunge.core.events import Checked, Edited, Ended, Event, Note, OnEvent, Started, Step
from expunge.core.method import Method
from expunge.core.model import Network
from expunge.core.objective import Objective
from expunge.core.request import Example, Request
from expunge.errors import DataRefused, EnvironmentRefused, ModelRefused, RunFailed, UsageRefused
from expunge.methods.finetune import Finetune
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.notation.parse import parse, parse_list, write
from expunge.notation.typed_json import event_to_json, to_json
from expunge.primitives.out_of_memory import in_fitting_batches
from expunge.report import html
from expunge.report.limits import limits
from expunge.report.quality import with_quality
from expunge.report.record import cost, head, row, samples, verdict, with_ideals
from expunge.report.verdict import Rule, check_rules
from expunge.run.prepare import Inputs
from expunge.runtime.atomic_files import check_room, lock, whole_folder, write_manifest, write_text
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import ask_together, give_back, shared_store
from expunge.runtime.processes import broadcast, is_main, shared_folder, world_size
from expunge.runtime.sharding import kept_on_host
from expunge.train.checkpoint import Checkpoints

AUDITS = {
    "language": "Choice, Probability, Loss, ExactMatch, Rouge, LossMembership, MinK",
    "vision": "Accuracy, Probability, Loss, LossMembership",
}


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
    checkpoint_every: int = 20
    """Steps between two checkpoints of the run; 0 for none."""
    resume: bool = False
    """Whether to go on from the newest checkpoint."""
    hold: str = "whole"
    """Of several processes, what each holds of a model that is audited: the whole on its device, or cut, a part."""
    line: str = ""
    """What was typed, for the report."""

    def __post_init__(self) -> None:
        if self.hold not in ("whole", "cut"):
            raise UsageRefused(f"--hold '{self.hold}' is not known. Allowed: whole, cut.")


@dataclass
class Clock:
    """Seconds of each part of a job."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


def method_of(job: Job) -> Method:
    """The method that the job's text describes, with the job's seed."""
    made = parse(job.method)
    if not isinstance(made, Method):
        known = "`expunge list` shows others: methods, edit, attack"
        raise UsageRefused(f"--method '{job.method}' is not a method. Give Finetune(...); {known}.")
    if job.seed is None:
        return made
    if not hasattr(made, "seed"):
        raise UsageRefused(f"--seed: {type(made).__name__} draws nothing by chance. Leave --seed out.")
    return replace(made, seed=job.seed)  # type: ignore[type-var]


def adapter_of(method: Method) -> Adapter | None:
    """What the method trains; None where its result is whole already."""
    adapter = getattr(method, "adapter", None)
    return adapter if isinstance(adapter, Adapter) else None


def checkpoints_of(job: Job) -> Checkpoints | None:
    """Where the run's checkpoints lie: beside the result."""
    folder = job.out.with_name(f"{job.out.name}.checkpoints")
    return Checkpoints(folder, job.checkpoint_every, job.resume) if job.checkpoint_every else None


def audits_of(text: str) -> list[Audit]:
    """The audits that a text lists."""
    made = parse_list(text)
    wrong = [repr(thing) for thing in made if not isinstance(thing, Audit)]
    if wrong:
        raise UsageRefused(f"--audits: {', '.join(wrong)} is not an audit. `expunge list audits` shows them.")
    return [audit for audit in made if isinstance(audit, Audit)]


def forget(job: Job, tell: OnEvent) -> dict[str, Any]:
    """Forget, and write `job.out`. Returns the report; `verdict.met` says whether the thresholds were met."""
    method, rules = method_of(job), [Rule.parse(text) for text in job.require]
    audits = audits_of(job.audits) if job.audits else None
    check_out(job)
    saved = checkpoints_of(job)
    with lock(job.out) if is_main() else nullcontext():
        if saved:
            broadcast(saved.check)
        clock = Clock()
        network, request = opened(job, clock, tell, getattr(method, "objective", None))
        if saved:
            broadcast(lambda: saved.compare(method, network, request))
        check_room(network.module.state_dict().values(), job.out)
        try:
            with shared_folder(whole_folder(job.out)) as folder:
                report = _forget(replace(job, out=folder), job, method, audits, rules, network, request, clock, tell)
        except KeyboardInterrupt:
            if saved and saved.steps():
                tell(Note(f"Checkpoints are in {saved.folder}; --resume goes on from them"))
            raise
        if saved:
            saved.remove()
        return report


def _forget(
    job: Job,
    asked: Job,
    method: Method,
    audits: list[Audit] | None,
    rules: list[Rule],
    network: Network,
    request: Request,
    clock: Clock,
    tell: OnEvent,
) -> dict[str, Any]:
    family = family_name(network)
    audits = audits or audits_of(AUDITS[family])
    check_rules(rules, audits, request, bool(job.reference))
    findings: list[Finding] = []
    before = open_shared(job, network)
    with clock.part("audit before"):
        findings += examine(before, request, audits, "before", tell)
    give_back(before.model)
    if job.reference:
        with clock.part("audit reference"):
            findings += examine(open_shared(job, job.reference), request, audits, "reference", tell)
    run = Log(job.out / "steps.jsonl", tell)
    with kept_on_host(network) if adapter_of(method) else nullcontext():
        with clock.part("forget"):
            adapted = _train(method, network, request, run, asked)
        with clock.part("merge and save"):
            tell(Note("Merging and saving"))
            merge = broadcast(lambda: save(job.out, adapter_of(method), network, adapted, request))
            del adapted
    with clock.part("read back"):
        after = open_shared(job, str(job.out / "model"))
    with clock.part("audit after"):
        findings += examine(after, request, audits, "after", tell)
    findings = with_ideals(with_quality(findings))
    report = {
        **about(asked, network, request, family),
        "method": write(method),
        "findings": [row(f) for f in findings],
        "run": {**run.facts, "merge": merge},
        "verdict": verdict(rules, findings, run.facts),
        "cost": cost(clock.seconds, run.size) | {"recalled": before.found + after.found},
        "limits": limits(request, family, bool(job.reference), merge["format"], {f.audit for f in findings}),
        "samples": samples(before, after, request, job.show_text),
    }
    if is_main():
        write_report(job.out, report, run.lines)
        write_manifest(job.out, base=report["model"]["fingerprint"], request=report["request"]["fingerprint"])
    return report


def audit(job: Job, tell: OnEvent) -> dict[str, Any]:
    """Audit a model as it is, and write `report.json` and `report.html` to `job.out`."""
    audits = audits_of(job.audits) if job.audits else None
    rules = [Rule.parse(text) for text in job.require]
    check_out(job)
    with lock(job.out) if is_main() else nullcontext():
        clock = Clock()
        network, request = opened(job, clock, tell)
        family = family_name(network)
        audits = audits or audits_of(AUDITS[family])
        check_rules(rules, audits, request, bool(job.reference))
        model = open_shared(job, network)
        with clock.part("audit"):
            # Nothing was changed, so the model audited is both: its rules read it as `after`.
            findings = examine(model, request, audits, "before", tell)
        if job.reference:
            with clock.part("audit reference"):
                findings += examine(open_shared(job, job.reference), request, audits, "reference", tell)
        findings = with_ideals(with_quality(findings))
        outcomes = [rule.read([*findings, *(f.of("after") for f in findings if f.model == "before")]) for rule in rules]
        report = {
            **about(job, network, request, family),
            "method": "",
            "findings": [row(f) for f in findings],
            "cost": cost(clock.seconds, 0) | {"recalled": model.found},
            "limits": limits(request, family, bool(job.reference), "", {f.audit for f in findings}),
            "samples": samples(model, None, request, job.show_text),
        }
        if outcomes:
            report["verdict"] = {"met": all(o.met for o in outcomes), "rules": [asdict(o) for o in outcomes]}
        with shared_folder(whole_folder(job.out)) as folder:
            if is_main():
                write_report(folder, report, [])
                write_manifest(folder, base=report["model"]["fingerprint"], request=report["request"]["fingerprint"])
        return report


def opened(job: Job, clock: Clock, tell: OnEvent, objective: object = None) -> tuple[Network, Request]:
    """The job's model and request; the files are checked before the model is loaded, by what `objective` reads too."""
    records = job.inputs.read()
    if isinstance(objective, Objective):
        job.inputs.supply(objective)
    with clock.part("load"):
        tell(Note(f"Loading {job.model}"))
        network = loaded(job, job.model)
        request = records.request(network)
        for repeat in request.repeats:
            tell(Note(f"Warning: {repeat}"))
        return network, request


def loaded(job: Job, model: str) -> Network:
    """A model on the job's device; on the host where the processes will hold a part each."""
    return open_network(model, job.device, "cpu" if job.hold == "cut" and world_size() > 1 else None)


def open_shared(job: Job, model: Network | str) -> CachedModel:
    """A model, to be asked by all processes, of which each question is remembered."""
    return CachedModel(ask_together(loaded(job, model) if isinstance(model, str) else model, job.hold), shared_store())


class Log:
    """Writes a run's steps to a file as they come, and keeps what the report needs of its events."""

    def __init__(self, path: Path, tell: OnEvent) -> None:
        self.path, self.tell = path, tell
        self.lines: list[Step | Checked] = []
        self.facts: dict[str, Any] = {}
        self.size = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Step() | Checked():
                self._write(event)
            case Started():
                share = event.trainable / event.parameters
                self.facts["adapter"] = {"layers": event.layers, "trainable": event.trainable, "share": share}
                self.facts |= {key: getattr(event, key) for key in ("level", "slack", "level_source", "budget")}
            case Edited():
                self.facts["edit"] = to_json(event)
            case Ended():
                self.facts |= to_json(event)
            case Note() if event.parts is not None:
                self.facts["parts"] = event.parts
        self.tell(event)

    def _write(self, event: Step | Checked) -> None:
        self.lines.append(event)
        self.size += event.size if isinstance(event, Step) else 0
        if is_main():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event_to_json(event)) + "\n")


def examine(model: CachedModel, request: Request, audits: Sequence[Audit], name: str, tell: OnEvent) -> list[Finding]:
    """Every audit's findings about one model, named before, after or reference."""
    tell(Note(f"Auditing the model {name}"))
    # One pass over everything, so that all options of a question share its prompt.
    model.answers([text for e in request.sets().values() for one in e for text in (one, *one.alternatives)])
    found: list[Finding] = []
    for each in audits:
        made = [finding.of(name) for finding in each(model, request)]
        if not made and name == "before":
            tell(Note(f"{each.name} could not be asked: no set has what it needs"))
        found += made
    if model.found:
        tell(Note(f"{model.found} answers were known from an earlier run"))
    if not found:
        raise DataRefused("No audit could be asked of these records. Choice needs options, membership a holdout set.")
    return found


def _train(method: Method, network: Network, request: Request, run: Log, asked: Job) -> Network:
    """Run the method; where it fails, keep the last good adapter beside the place that the result would have had."""
    try:
        if isinstance(method, Finetune):
            return method(network, request, run, checkpoints_of(asked))
        return method(network, request, run)
    except RunFailed as error:
        adapter = adapter_of(method)
        if adapter is not None and isinstance(error.last_good, Network):
            kept = asked.out.with_name(f"{asked.out.name}.failed")
            broadcast(lambda: _keep(kept, adapter, error.last_good, run))
            if saved := checkpoints_of(asked):
                saved.remove()  # they would lead to the same step
            raise RunFailed(f"{error} The last good adapter and the steps are in {kept}.") from error
        raise


def _keep(folder: Path, adapter: Adapter, network: Network, run: Log) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    adapter.save(network, folder / "adapter")
    shutil.copy(run.path, folder / "steps.jsonl")


def save(folder: Path, adapter: Adapter | None, network: Network, adapted: Network, request: Request) -> dict[str, Any]:
    """Write adapter and merged model; how far the merged model's answers are from the adapter's."""
    if adapter is not None:
        adapter.save(adapted, folder / "adapter")
    if (folder / "adapter").is_dir():
        write_manifest(folder / "adapter", base=network.fingerprint())
    merged = adapted if adapter is None else adapter.merge(adapted)
    broken = [name for name, p in merged.module.named_parameters() if not torch.isfinite(p).all()]
    if broken:
        raise ModelRefused(f"The merged model holds NaN or Inf in {broken[0]}. Nothing was written.")

    def distances(part: list[Example]) -> list[float]:
        said = merged.predict(part).logits
        return [float((said - other.predict(part).logits).abs().max()) for other in (adapted, network)]

    group = next(network.batches(request.forget))[:8]
    with torch.inference_mode():
        found = [each for _, each in in_fitting_batches(merged, request.forget, [group], distances)]
    apart, moved = (max(values) for values in zip(*found, strict=True))
    merged.save(folder / "model")
    dtype = next(merged.module.parameters()).dtype
    return {
        "adapter": (folder / "adapter").is_dir(),
        "max_logit_difference": apart,
        "max_logit_change": moved,
        "format": f"{str(dtype).removeprefix('torch.')} safetensors",
    }


def about(job: Job, network: Network, request: Request, family: str) -> dict[str, Any]:
    """The report's head."""
    sources = {name: path.name for name, path in job.inputs.paths.items()}
    return head(job.line, job.model, family, network, request, sources, getattr(method_of(job), "seed", 0))


def write_report(folder: Path, report: dict[str, Any], steps: list[Step | Checked]) -> None:
    """`report.json` and `report.html`."""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "report.html", html.render(report, [event_to_json(step) for step in steps]))


def family_name(network: Network) -> str:
    """`language` or `vision`."""
    return "language" if isinstance(network, LanguageModel) else "vision"


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
