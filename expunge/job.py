"""The main job: load, audit, forget, merge, read back, audit again, and report; all of it appears, or nothing does."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock
import torch

from expunge import __version__
from expunge.core.adapter import Adapter
from expunge.core.audit import Audit, Finding
from expunge.core.errors import EnvironmentRefused, ModelRefused, RunFailed, UsageRefused
from expunge.core.files import whole_folder, write_manifest, write_text
from expunge.core.model import Network, Remembered
from expunge.core.notation import parse, parse_list
from expunge.core.request import Request
from expunge.inputs import Inputs
from expunge.limits import limits
from expunge.models.auto import open_network
from expunge.models.language import LanguageModel
from expunge.report import html
from expunge.report.verdict import Outcome, Rule
from expunge.train.finetune import Finetune

AUDITS = {
    "language": "Choice, Probability, Loss, ExactMatch, Rouge, LossMembership, MinK",
    "vision": "Accuracy, Probability, Loss, LossMembership",
}
SAMPLES = 12
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
        records = job.inputs.read()
        clock = Clock()
        with clock.part("load"):
            tell({"kind": "phase", "what": f"Loading {job.model}"})
            network = open_network(job.model, job.device)
            request = records.request(network)
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
        **head(asked, network, request, family),
        "method": repr(method),
        "findings": [row(f) for f in findings],
        "run": {**run.facts, "merge": merge},
        "verdict": verdict(rules, findings, run),
        "cost": cost(clock, run.size),
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
        records = job.inputs.read()
        clock = Clock()
        with clock.part("load"):
            tell({"kind": "phase", "what": f"Loading {job.model}"})
            network = open_network(job.model, job.device)
            request = records.request(network)
        family = family_name(network)
        audits = audits or audits_of(AUDITS[family])
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
            **head(job, network, request, family),
            "method": "",
            "findings": [row(f) for f in findings],
            "cost": cost(clock, 0),
            "limits": limits(request, family, bool(job.reference), ""),
            "samples": samples(model, None, request, job.show_text),
        }
        if outcomes:
            report["verdict"] = {"met": all(o.met for o in outcomes), "rules": [asdict(o) for o in outcomes]}
        with whole_folder(job.out) as folder:
            write_report(folder, report, [])
            write_manifest(folder, base=report["model"]["fingerprint"], request=report["request"]["fingerprint"])
        return report


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
            self.facts |= {key: event[key] for key in ("level", "level_source", "budget")}
        elif kind == "end":
            self.facts |= {key: event[key] for key in ("stopped", "kept_step", "steps", "reached")}
        self.size += int(str(event.get("size", 0)))
        self.tell(event)


def examine(model: Remembered, request: Request, audits: Sequence[Audit], name: str, tell: Tell) -> list[Finding]:
    """Every audit's findings about one model, named before, after or reference."""
    tell({"kind": "phase", "what": f"Auditing the model {name}"})
    # One pass over everything, so that all options of a question share its prompt.
    model.answers([text for e in request.sets().values() for one in e for text in (one, *one.alternatives)])
    found: list[Finding] = []
    for each in audits:
        found += [finding.of(name) for finding in each(model, request)]
        tell({"kind": "audited", "audit": each.name, "model": name})
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
        write_manifest(folder / "adapter", base=fingerprint(network))
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


def with_ideals(findings: list[Finding]) -> list[Finding]:
    """Findings with what a model that never saw the forget set would get, as far as that is known.

    On the forget set: the reference model's value; else the value of the model before on the holdout set, which it
    never saw; else what guessing gets. On any other set the ideal is no change: the value before.
    """
    at = {(f.audit, f.set, f.model): f.value for f in findings}

    def ideal(f: Finding) -> float | None:
        if f.set == "forget vs holdout":
            return at.get((f.audit, f.set, "reference"), f.ideal)
        if f.set == "forget":
            known = at.get((f.audit, "forget", "reference"), at.get((f.audit, "holdout", "before")))
            return f.ideal if known is None else known
        return at.get((f.audit, f.set, "before"))

    return [replace(f, ideal=ideal(f)) for f in findings]


def row(finding: Finding) -> dict[str, Any]:
    """A finding as the report has it."""
    lower = ("forget",)
    better = "ideal" if "holdout" in finding.set else "lower" if finding.set in lower else "higher"
    if finding.audit in ("Loss", "Perplexity"):
        better = {"lower": "higher", "higher": "lower"}.get(better, better)
    return {**asdict(finding), "scores": [round(score, 6) for score in finding.scores], "better": better}


def verdict(rules: list[Rule], findings: list[Finding], run: Log) -> dict[str, Any]:
    """The run's own criterion, that it changed something, and the rules asked for."""
    outcomes = [Outcome("the kept step differs from the model before", None, None, run.facts["kept_step"] > 0)]
    if run.facts["level"] is not None or run.facts["budget"] is not None:
        outcomes.append(Outcome(criterion(run.facts), None, None, bool(run.facts["reached"])))
    outcomes += [rule.read(findings) for rule in rules]
    return {"met": all(o.met for o in outcomes), "rules": [asdict(o) for o in outcomes]}


def criterion(facts: dict[str, Any]) -> str:
    """The run's stop criterion in words."""
    parts = []
    if facts["level"] is not None:
        source = " (that of the holdout set)" if facts["level_source"] == "holdout" else ""
        parts.append(f"forget loss reached {facts['level']:.2f} nats{source}")
    if facts["budget"] is not None:
        parts.append(f"retain loss rose by at most {facts['budget']:g} nats")
    return "; ".join(parts)


def head(job: Job, network: Network, request: Request, family: str) -> dict[str, Any]:
    """What was asked, of which model, with which data, where."""
    sources = job.inputs.paths
    sets = {
        name: {
            "examples": len(examples),
            "rows": sum(e.rows for e in examples),
            "source": sources[name].name if name in sources else job.inputs.forget.name,
        }
        for name, examples in request.sets().items()
    }
    return {
        "schema": 1,
        "expunge": __version__,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": job.line,
        "model": {
            "name": job.model,
            "family": family,
            "architecture": type(network.module).__name__,
            "parameters": sum(p.numel() for p in network.module.parameters()),
            "fingerprint": fingerprint(network),
        },
        "request": {"fingerprint": request.fingerprint(), "sets": sets, "duplicates": request.duplicates()},
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft")},
            "device": job.device,
            "threads": torch.get_num_threads(),
            "seed": method_of(job).seed,
        },
    }


def fingerprint(network: Network) -> str:
    """SHA-256 over names, types and bytes of all weights."""
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(network.module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cost(clock: Clock, size: int) -> dict[str, Any]:
    """Seconds by part, tokens (or images) trained on, and the largest memory that the process held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    seconds = {name: round(value, 2) for name, value in clock.seconds.items()}
    return {
        "seconds": {**seconds, "total": round(sum(clock.seconds.values()), 2)},
        "tokens": size,
        "peak_memory_bytes": peak,
    }


def samples(before: Remembered, after: Remembered | None, request: Request, shown: bool) -> dict[str, Any]:
    """What the models wrote for some prompts; ids alone unless the text was asked for."""
    items = []
    for name, examples in request.sets().items():
        for example in examples[: SAMPLES if name == "forget" else SAMPLES // 3]:
            said = [m.said.get(k) for m in (before, after) if m for k in m.said if k[0] == id(example)]
            if not said or not said[0]:
                continue
            texts = [entry[1] if entry and shown else None for entry in said]
            items.append(
                {
                    "set": name,
                    "id": example.id,
                    "prompt": getattr(example, "question", "") if shown else None,
                    "answer": getattr(example, "answer", "") if shown else None,
                    "before": texts[0],
                    "after": texts[1] if len(texts) > 1 else None,
                    "reference": None,
                }
            )
    return {"shown": shown, "items": items}


def write_report(folder: Path, report: dict[str, Any], steps: list[dict[str, object]]) -> None:
    """`report.json` and `report.html`."""
    write_text(folder / "report.json", json.dumps(report, indent=1))
    write_text(folder / "report.html", html.render(report, steps))


def family_name(network: Network) -> str:
    """`language` or `vision`."""
    return "language" if isinstance(network, LanguageModel) else "vision"


def check_out(job: Job) -> None:
    """Refuse an output folder that holds anything, or that lies in the model's."""
    out = job.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageRefused(f"{out} is not empty. Give a new folder with --out; nothing is ever written over.")
    if Path(job.model).is_dir() and out.resolve().is_relative_to(Path(job.model).resolve()):
        raise UsageRefused(f"{out} lies in the model's folder, which is never written to. Give another --out.")
    parent = next(p for p in [out.absolute(), *out.absolute().parents] if p.exists())
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
        raise EnvironmentRefused(f"{out}: another run holds it (lock {path}). Wait for it, or give another --out.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        held.release()
