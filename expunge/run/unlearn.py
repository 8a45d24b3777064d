"""Unlearning without files: audit, forget, audit again, and report. The command puts files around the same steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from expunge.core.adapter import Adapted
from expunge.core.audit import Audit, Finding, Summary
from expunge.core.method import Method
from expunge.core.model import Model
from expunge.core.question import LogProbabilities
from expunge.core.request import Example, Request
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.events import Note, OnEvent, ignore_event
from expunge.notation.parse import write
from expunge.notation.recipes import Recipe
from expunge.report import record
from expunge.report.ideals import with_ideals
from expunge.report.limits import limits, say_unasked, say_undeclared
from expunge.report.report import SCHEMA, Ancestor, RecipeFacts, Report
from expunge.report.required import Rule, check_rules, read_as_meant
from expunge.report.rules import Asked
from expunge.report.run import Run, Saved
from expunge.report.verdict import judge, judge_audit
from expunge.run.added import add_probes
from expunge.run.choose import Chosen, aims_at_levels, audits_of, choose_method, default_method, summaries_of
from expunge.run.compare import compare
from expunge.run.families import family_name, limits_of, unit_of
from expunge.run.own_answers import answer_plain_questions, lacks_retain
from expunge.run.pictures import Seen, look, show_pictures
from expunge.run.recorder import Recorder
from expunge.run.tokenizer_facts import tokenizer_facts
from expunge.run.utility import utility, with_utility
from expunge.runtime.cached_model import CachedModel
from expunge.runtime.parallel_model import give_back, shared_store


@dataclass
class Clock:
    """Seconds of each part of a run."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True)
class Result:
    """What a method made, as it is audited."""

    model: Model
    """Without adapter."""
    saved: Saved
    adapted: Adapted | None = None
    """The same with its adapter, where it is in memory."""


def remember(model: Model) -> CachedModel:
    """A model of which each answer is kept, from run to run where the environment names a place for that."""
    return CachedModel(model, shared_store())


@dataclass(frozen=True)
class Task:
    """A request to a model: what is asked of it, required and reported."""

    model: Model
    request: Request
    audits: tuple[Audit, ...]
    rules: tuple[Rule, ...] = ()
    reference: Callable[[], Model] | None = None
    """Opens a model that never saw the forget set."""
    ask: Callable[[Model], CachedModel] = remember
    """Remembers what a model that is audited answers."""
    on_event: OnEvent = ignore_event
    clock: Clock = field(default_factory=Clock)
    command: str = ""
    """The line that makes the report."""
    name: str = ""
    """What the user calls the model."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where each set comes from."""
    show_text: bool = False
    added: tuple[str, ...] = ()
    """Sets that nobody gave."""
    recipe: Recipe | None = None
    """The published recipe that is run, if it is one."""
    earlier: tuple[Ancestor, ...] = ()
    """Earlier requests that are asked again."""

    def with_retain(self, method: Method) -> Task:
        """The task with a retain set of the model's own answers, where a method reads one and none was given."""
        if not lacks_retain(self.request, method.minimises):
            return self
        made = answer_plain_questions(self.model, self.request)
        self.on_event(
            Note(
                f"No retain set was given: {len(made)} of the model's own answers to plain questions stand for it. "
                f"They hold nothing near what is forgotten; --retain FILE with such records keeps more"
            )
        )
        return replace(self, request=replace(self.request, retain=made), added=(*self.added, "retain"))

    def with_method(self, chosen: Chosen) -> tuple[Task, Method]:
        """The task as a method does it, and that method fitted to it."""
        task = replace(self, recipe=chosen.recipe).with_retain(chosen.method)
        fitted = chosen.method.fit(task.model, task.request, task.on_event)
        return replace(task, command=f"unlearn(model, request, {write(fitted)!r})"), fitted

    def with_probes(self) -> Task:
        """The task with probes of our own, where none of the request says what should stay."""
        request, added = add_probes(self.model, self.request, self.on_event)
        return replace(self, request=request, added=(*self.added, *added))

    @property
    def to_judge(self) -> Asked:
        """What a verdict must know of it."""
        names = {audit.name for audit in self.audits}
        left_out = [each for each in audits_of(None, family_name(self.model)) if each.name not in names]
        return Asked(self.request, (*self.audits, *self.summaries), tuple(left_out))

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """What is worked out from the audits' findings."""
        return summaries_of(self.audits, self.reference is not None)

    @cached_property
    def to_change(self) -> Model:
        """What the method is given: the model, beside whose weights nothing of the forget set is held any more."""
        return self.model.without(self.request.forget)

    def to_train(self, method: Method) -> Request:
        """What the method reads. Where it aims at levels, what earlier requests forgot is in the forget set too: it is
        at its levels already, and is held there."""
        again = {e.record_digest(): e for one in self.earlier for e in self.request.probes.get(one.set, ())}
        known = {e.record_digest() for e in self.request.forget}
        held = [example for digest, example in again.items() if digest not in known]
        if not held or not aims_at_levels(method):
            return self.request
        return replace(self.request, forget=(*self.request.forget, *held))

    def facts(self) -> tuple[str, str]:
        """Fingerprints of the model and of the request, as a report has them."""
        unit = unit_of(family_name(self.model))
        told = record.describe_request(self.request, unit, self.sources, self.added)
        return self.model.fingerprint(), told.fingerprint

    def as_meant(self) -> Task:
        """The task with each rule about the set that its audit is of; says where a rule named another."""
        rules, told = read_as_meant(self.rules, (*self.audits, *self.summaries), self.request)
        for line in told:
            self.on_event(Note(line))
        return replace(self, rules=rules)

    def check(self) -> None:
        """Refuse, before the work, a rule that could never be met, and an audit that asks what the model cannot say."""
        check_rules(self.rules, self.audits, self.summaries, self.request)
        try:
            for audit in self.audits:
                audit.check(self.model)
        except UsageRefused as error:
            known = ", ".join(audit.name for audit in audits_of(None, family_name(self.model)))
            raise UsageRefused(f"{error} Audits for it: {known}.") from error


def unlearn(
    model: Model,
    request: Request,
    method: str | Method | None = None,
    audits: str | Sequence[Audit] | None = None,
    *,
    reference: Model | None = None,
    require: Sequence[str] = (),
    added_probes: bool = True,
    on_event: OnEvent = ignore_event,
) -> Report:
    """Make a model forget, audit it before and after, and report; `report.model` is the result.

    `method` and `audits` are objects, or texts in the notation; a method may be a recipe's name, such as "NPO". Without
    one, texts with a holdout set are brought to the losses of unseen texts, token by token (`TokenLevels`), others to
    a level of the mean (`Settle`), and images to a class never learnt (`AbsentClass`). A method is fitted to the model
    before any audit. `reference` is a model that never saw the forget set; `require` lists thresholds such as
    "forget.Choice <= 0.25", beside those that every verdict has. Where no probe says what should stay, `added_probes`
    has a language model asked the general knowledge and plain texts of expunge. The model given is left as it was.
    Nothing is written: `report.save(folder)`
    does that. Raises a `Refusal` where something cannot be done as it is.
    """
    task = Task(
        model=model,
        request=request,
        audits=audits_of(audits, family_name(model)),
        rules=tuple(Rule.parse(text) for text in require),
        reference=None if reference is None else lambda: reference,
        on_event=on_event,
    )
    named = default_method(family_name(model), bool(request.holdout)) if method is None else method
    task, fitted = task.with_method(choose_method(named, family_name(model)))
    task = task.with_probes() if added_probes else task
    return forget(task, fitted, lambda told: in_memory(task, fitted, told))


def in_memory(task: Task, method: Method, on_event: OnEvent) -> Result:
    """The method's result, adapter merged."""
    with task.clock.part("forget"):
        changed = method(task.to_change, task.request, on_event)
    with task.clock.part("merge"):
        plain = changed.plain()
        refuse_broken(plain)
        adapted = changed if isinstance(changed, Adapted) else None
        return Result(plain, compare(task.model, changed, plain, task.request).saved, adapted)


def forget(task: Task, method: Method, change: Callable[[OnEvent], Result], recorder: Recorder | None = None) -> Report:
    """Audit, forget by `change`, which runs the method, and audit again."""
    task = task.as_meant()
    task.check()
    recorder, before = recorder or Recorder(task.on_event), task.ask(task.model)
    with task.clock.part("audit before"):
        findings = examine(before, task, "before")
        useful = utility(before, task.request)
        seen = {"before": look(before, task.request)}
    give_back(before.inner)
    of_reference, seen["reference"] = examine_reference(task)
    findings += of_reference
    if task.to_change is not task.model:
        task.on_event(Note("What is to be forgotten has left the graph that the model holds"))
    result = change(recorder)
    pair, after = (task.model, result.model), task.ask(result.model)
    with task.clock.part("audit after"):
        findings += examine(after, task, "after")
        run = with_utility(recorder.run(result.saved), pair, useful, utility(after, task.request))
        seen["after"] = look(after, task.request)
    findings = complete(task, findings)
    return replace(
        assemble(task, findings, (before, after), run, recorder.size, seen),
        method=write(method),
        result=after.fingerprint(),
        verdict=judge(task.rules, findings, run, task.to_judge),
        steps=tuple(recorder.steps),
        model=result.model,
        adapted=result.adapted,
    )


def audit(task: Task) -> Report:
    """Audit a model as it is."""
    task = task.as_meant()
    task.check()
    model = task.ask(task.model)
    with task.clock.part("audit"):
        findings, seen = examine(model, task, "before"), {"before": look(model, task.request)}
    of_reference, seen["reference"] = examine_reference(task)
    findings = complete(task, findings + of_reference)
    return replace(assemble(task, findings, (model,), None, 0, seen), verdict=judge_audit(task.rules, findings))


def examine(model: CachedModel, task: Task, name: str) -> list[Finding]:
    """Every audit's findings about one model, named before, after or reference."""
    task.on_event(Note(f"Auditing the model {name}"))
    if name == "before":
        for line in (*say_unasked(task.request, task.audits, task.added), *say_undeclared(task.request)):
            task.on_event(Note(line))
    if any(LogProbabilities in audit.reads for audit in task.audits):
        # One pass over everything, so that all options of a question share its prompt.
        model.ask(LogProbabilities(), every_text(task.request))
    found: list[Finding] = []
    for each in task.audits:
        made = [finding.of(name) for finding in each(model, task.request)]
        found += made
    if not found:
        needs = "; ".join(f"{each.name} needs {each.needs}" for each in task.audits if each.needs)
        raise DataRefused(f"No audit could be asked of these records. {needs or 'Membership needs a holdout set'}.")
    return found


def every_text(request: Request) -> list[Example]:
    """Every example of a request, and the same prompts with other answers."""
    return [text for examples in request.sets().values() for one in examples for text in (one, *one.alternatives)]


def examine_reference(task: Task) -> tuple[list[Finding], Seen | None]:
    """The findings about the reference model, where there is one, and what it makes of images."""
    if task.reference is None:
        return [], None
    with task.clock.part("audit reference"):
        model = task.ask(task.reference())
        return examine(model, task, "reference"), look(model, task.request)


def complete(task: Task, findings: Sequence[Finding]) -> list[Finding]:
    """Findings with the summaries of them, and with their ideals."""
    derived = [made for summary in task.summaries for made in summary(findings)]
    return with_ideals([*findings, *derived], task.to_judge.unlike())


def refuse_broken(model: Model) -> None:
    """Refuse a model whose weights hold NaN or infinities."""
    for network in record.networks(model):
        for name, parameter in network.module.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ModelRefused(f"The merged model holds NaN or Inf in {name}. Nothing was written.")


def assemble(
    task: Task,
    findings: Sequence[Finding],
    models: Sequence[CachedModel],
    run: Run | None,
    size: int,
    seen: Mapping[str, Seen | None],
) -> Report:
    """The report of what was measured; `models` are the one before and, where there is one, the one after."""
    family = family_name(task.model)
    saved = run.saved if run else None
    pictures = show_pictures(models, task.request, seen)
    written = record.samples(models[0], models[1] if models[1:] else None, task.request)
    texts = pictures.samples if pictures.samples.items else written
    return Report(
        schema=SCHEMA,
        expunge=record.VERSION,
        created=record.now(),
        command=task.command,
        original=replace(record.describe_model(task.model, task.name, family), tokenizer=tokenizer_facts(task.model)),
        result=None,
        request=record.describe_request(task.request, unit_of(family), task.sources, task.added),
        environment=record.describe_environment(task.model),
        method="",
        earlier=task.earlier,
        recipe=RecipeFacts(task.recipe.name, task.recipe.source) if task.recipe else None,
        findings=record.round_scores(findings),
        run=run,
        verdict=None,
        cost=record.cost(task.clock.seconds, size),
        limits=limits(task.request, limits_of(family), task.audits, task.reference is not None, saved, task.added),
        samples=texts if task.show_text else texts.hide(),
        texts=texts,
        confusion=pictures.confusion,
        classes=pictures.classes,
        places=pictures.places,
    )
