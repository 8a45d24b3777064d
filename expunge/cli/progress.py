"""What a user sees while a job runs, and the summary at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from expunge.core.audit import Finding
from expunge.events import Checked, Edited, Ended, Event, Note, Started, Step
from expunge.report.answers import Outcome
from expunge.report.headline import outcome
from expunge.report.report import Report
from expunge.report.results import any_of, by_set, rows_of
from expunge.report.words import interval, number, visible, with_sign

WORDS = {"yes": "yes ", "no": "NO  ", "not measured": "OPEN"}


class Progress:
    """Shows a job's events: phases as lines, steps as a bar. Without a terminal, checks are printed as lines."""

    def __init__(self, console: Console | None = None, since: float | None = None, doing: str = "Forgetting") -> None:
        self.doing = doing
        self.console = console or Console(stderr=True, highlight=False)
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}  {task.fields[losses]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )
        self.task: TaskID | None = None
        self.start = time.monotonic() if since is None else since

    def __enter__(self) -> Self:
        if self.console.is_interactive:  # elsewhere the bars show nothing, and leave an empty line at their end
            self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_interactive:
            self.bars.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Note():
                self.say(event.what)
            case Started():
                self._start(event)
            case Step():
                self._step(event)
            case Checked():
                self._check(event)
            case Ended():
                self._end(event)
            case Edited():
                pass

    def say(self, text: str) -> None:
        shown = Text(f"{time.monotonic() - self.start:6.1f} s", style="dim")
        shown.append(f"  {visible(' '.join(text.split()))}", style="not dim")
        self.console.print(shown, soft_wrap=True)

    def _start(self, event: Started) -> None:
        self.say(
            f"{self.doing}: {event.layers} layers adapted, {event.trainable:,} of {event.parameters:,} "
            f"parameters move ({event.trainable / event.parameters:.2%})"
        )
        if event.level is not None:
            self.say(f"The forget loss is to reach {event.level:.2f} nats ({event.level_source})")
        else:
            limit = event.max_retain_increase
            unless = "" if limit is None else f", unless the retain loss rises by more than {limit:g} nats"
            self.say(f"All {event.steps} steps are taken{unless}")
        self.task = self.bars.add_task(self.doing, total=event.steps, losses="")

    def _step(self, event: Step) -> None:
        assert self.task is not None
        gradient = sum(value**2 for value in event.gradient.values()) ** 0.5
        sets = {"forget": event.forget, "retain": event.retain}
        losses = [f"{name} {loss:.2f}" for name, loss in sets.items() if loss is not None] or [f"loss {event.loss:.2f}"]
        self.bars.update(self.task, completed=event.step, losses=f"{'  '.join(losses)}  |g| {gradient:.1f}")

    def _check(self, event: Checked) -> None:
        retain = f", retain loss {event.retain:.2f}" if event.retain is not None else ""
        # Each example by itself: those beyond the level do not make up for the others, as they do in the mean.
        short = f" (examples {event.short:.2f} short of the level)" if event.level is not None else ""
        self.say(f"step {event.step}: forget loss {event.forget:.2f}{short}{retain}")

    def _end(self, event: Ended) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.say(f"Stopped at step {event.steps}: {event.stopped}; kept step {event.kept_step}")

    def summary(self, report: Report, out: Path) -> None:
        """The findings as a table, the verdict, and where everything lies."""
        console = Console(highlight=False, soft_wrap=False)
        if not console.is_terminal:
            console.width = max(console.width, 120)  # a file has no width that the table would have to be folded into
        console.print(_table(report.findings))
        said = outcome(report)
        lines = [*_verdict(report), f"\n{said.words}.", *_say_unmeasured(report), f"Report: {out / 'report.html'}"]
        lines += [f"Model:  {out / 'model'}"] if (out / "model").is_dir() else []
        for line in lines:
            console.print(line, soft_wrap=True, markup=False)  # a path may hold brackets


def _table(findings: Sequence[Finding]) -> Table:
    """A line for each set and audit: its value of each model, the interval of the last, and the ideal."""
    names = [n for n in ("before", "after", "reference") if any(f.model == n for f in findings)]
    last = "after" if "after" in names else "before"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("set", "audit", "n", *names, f"95 % of {last}", "ideal"):
        table.add_column(column, justify="left" if column in ("set", "audit") else "right")
    shown = ""
    for set_, audit, row in rows_of(by_set(findings)):
        of = row[last] if last in row else any_of(row)
        ideal = "" if of.ideal is None else number(of.ideal)
        numbers = [number(row[name].value) if name in row else "" for name in names]
        table.add_row("" if set_ == shown else set_, audit, str(of.n), *numbers, interval(of.low, of.high), ideal)
        shown = set_
    return table


def _verdict(report: Report) -> Iterator[str]:
    """Each answer with its reason, and every rule under it."""
    for name, answer in report.verdict or ():
        if not (answer.rules or report.run):
            continue
        yield f"\n{name.capitalize()}: {answer.said}. {answer.reason}"
        for rule in answer.rules:
            yield f"  {WORDS[rule.result]}  {rule.rule}  {_numbers(rule)}"


def _numbers(rule: Outcome) -> str:
    if rule.value is None:
        return "(not measured: no record of this set has what the audit needs)"
    bound = "unknown" if rule.bound is None else f"{rule.bound:.4g}"
    span = "" if rule.low is None or rule.high is None else f", off by {with_sign(rule.low)} to {with_sign(rule.high)}"
    return f"({rule.value:.4g}, against {bound}{span})"


def _say_unmeasured(report: Report) -> Iterator[str]:
    """What to give for an answer that was not measured."""
    for name, answer in (report.verdict or ()) if report.run else ():
        if answer.said == "not measured":
            yield f"To measure {name}: {answer.unmeasured[0] if answer.unmeasured else answer.reason}"
