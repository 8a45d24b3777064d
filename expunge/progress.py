"""What a user sees while a job runs, and the summary at its end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table


class Progress:
    """Shows a job's events: phases as lines, steps as a bar. Without a terminal, checks are printed as lines."""

    def __init__(self, console: Console | None = None) -> None:
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
        self.start = time.monotonic()

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        getattr(self, f"_{event['kind']}", lambda _: None)(event)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.start:6.1f} s[/dim]  {text}", soft_wrap=True)

    def _phase(self, event: dict[str, Any]) -> None:
        self.say(event["what"])

    def _start(self, event: dict[str, Any]) -> None:
        share = event["trainable"] / event["parameters"]
        self.say(
            f"Forgetting: {event['layers']} layers adapted, {event['trainable']:,} of {event['parameters']:,} "
            f"parameters move ({share:.2%})"
        )
        if event["level"] is not None:
            self.say(f"The forget loss is to reach {event['level']:.2f} nats ({event['level_source']})")
        self.task = self.bars.add_task("Forgetting", total=event["steps"], losses="")

    def _step(self, event: dict[str, Any]) -> None:
        assert self.task is not None
        gradient = sum(value**2 for value in event["gradient"].values()) ** 0.5
        losses = [f"{name} {event[name]:.2f}" for name in ("forget", "retain") if event[name] is not None]
        self.bars.update(self.task, completed=event["step"], losses=f"{'  '.join(losses)}  |g| {gradient:.1f}")

    def _check(self, event: dict[str, Any]) -> None:
        retain = f", retain loss {event['retain']:.2f}" if event["retain"] is not None else ""
        short = f" ({event['short']:.2f} short of the level)" if event["level"] is not None else ""
        self.say(f"step {event['step']}: forget loss {event['forget']:.2f}{short}{retain}")

    def _end(self, event: dict[str, Any]) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
        self.say(f"Stopped at step {event['steps']}: {event['stopped']}; kept step {event['kept_step']}")

    def summary(self, report: dict[str, Any], out: Path) -> None:
        """The findings as a table, the verdict, and where everything lies."""
        console = Console(highlight=False, soft_wrap=False)
        names = [n for n in ("before", "after", "reference") if any(f["model"] == n for f in report["findings"])]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("set", "audit", *names, "ideal"):
            table.add_column(column, justify="left" if column in ("set", "audit") else "right")
        values = {(f["set"], f["audit"], f["model"]): f for f in report["findings"]}
        last = ""
        for set_, audit in dict.fromkeys((f["set"], f["audit"]) for f in _by_set(report["findings"])):
            found = [values.get((set_, audit, name)) for name in names]
            ideal = next((f["ideal"] for f in found if f and f["ideal"] is not None), None)
            numbers = [f"{f['value']:.2f}" if f else "" for f in found]
            shown = "" if set_ == last else set_
            table.add_row(shown, audit, *numbers, "" if ideal is None else f"{ideal:.2f}")
            last = set_
        console.print(table)
        verdict = report.get("verdict")
        if verdict:
            console.print()
            for rule in verdict["rules"]:
                value = "" if rule["value"] is None else f"  ({rule['value']:.3f}, bound {_number(rule['bound'])})"
                console.print(f"{'met    ' if rule['met'] else 'NOT MET'}  {rule['rule']}{value}", soft_wrap=True)
        console.print(f"\nReport: {out / 'report.html'}", soft_wrap=True)
        if (out / "model").is_dir():
            console.print(f"Model:  {out / 'model'}", soft_wrap=True)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _by_set(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    order = {name: place for place, name in enumerate(dict.fromkeys(f["set"] for f in findings))}
    return sorted(findings, key=lambda f: order[f["set"]])
