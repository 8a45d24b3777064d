"""A plan as a person reads it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from expunge.plan.plan import Plan, plan

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expunge.plan.machine import Machine
    from expunge.run.job import Job

WHAT = {
    "forward": "forward",
    "backward": "backward",
    "adapter": "adapter",
    "reference": "reference pass",
    "head": "output matrix",
    "checks": "checks",
    "audits": "audits, before and after",
}


def say(job: Job, machine: Machine, as_json: bool) -> None:
    """Print the plan of a job as a table, or as JSON."""
    made = plan(job, machine)
    if as_json:
        print(json.dumps(made.facts(), indent=1))
    else:
        show(made, Console(highlight=False))


def show(plan: Plan, console: Console) -> None:
    """Print what a run will cost."""
    facts = plan.facts()
    paper, machine = plan.paper, plan.machine
    console.print(
        f"{paper.name}: {paper.parameters:,} parameters in {paper.blocks} blocks, {facts['machine']['dtype']} on "
        f"{machine.processes} x {machine.device}; {plan.widths.trainable:,} move; {_course(plan)}",
        soft_wrap=True,
    )
    reads = facts["reads"]
    console.print(
        f"{'A step' if plan.course.steps else 'The edit'} reads {', '.join(reads['now']) or 'hidden states'} with "
        f"gradients"
        f"{' and asks the model before of ' + ', '.join(reads['before']) if reads['before'] else ''}.",
        soft_wrap=True,
    )
    console.print(
        _table(
            "images" if paper.shape else "tokens", {name: f"{count:,.0f}" for name, count in facts["tokens"].items()}
        )
    )
    counted = {WHAT[name]: getattr(plan.flops, name) for name in WHAT} | {"total": plan.flops.total}
    console.print(_table("matmul FLOPs, each process", {name: _scaled(count) for name, count in counted.items()}))
    console.print(
        _table(
            f"memory {'in training' if plan.course.steps else 'for gradients'}, each device",
            _bytes(plan.memory.training),
        )
    )
    console.print(_table("memory, each device", {**_bytes(plan.memory.phases), "there is": _size(plan.room)}))
    console.print(
        f"Activations: {_size(plan.memory.kept)} kept, {_size(plan.memory.recomputed)} recomputed.", soft_wrap=True
    )
    free = {"total": sum(plan.disk.values()), "free": plan.free}
    console.print(_table("disk", _bytes({**plan.disk, **free})))
    _time(plan, console)


def _course(plan: Plan) -> str:
    return f"{plan.course.steps} steps at most" if plan.course.steps else "in one edit"


def _time(plan: Plan, console: Console) -> None:
    if not plan.seconds:
        console.print("\nTime: not measured here. Give --rate, the TFLOP/s that one device of the machine achieves.")
        return
    total = {"total": sum(plan.seconds.values())} if len(plan.seconds) > 1 else {}
    console.print(_table("time", {name: _span(value) for name, value in {**plan.seconds, **total}.items()}))
    if plan.pace:
        console.print(
            f"Timed in {plan.pace.took:.1f} s on networks of {' and '.join(map(str, plan.pace.blocks))} blocks; "
            + (
                f"a step takes {plan.pace.step:.2f} s. A run ends earlier when it has forgotten enough."
                if plan.course.steps
                else f"gradients take {plan.pace.step:.2f} s."
            ),
            soft_wrap=True,
        )


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"\n{title}", min_width=30)
    table.add_column("", justify="right", vertical="bottom")
    for name, value in rows.items():
        table.add_row(f"  {name}", value)
    return table


def _bytes(values: Mapping[str, float]) -> dict[str, str]:
    return {name: _size(value) for name, value in values.items()}


def _size(value: float) -> str:
    for unit, many in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= many:
            return f"{value / many:.2f} {unit}"
    return f"{value / 1e3:.1f} kB"


def _scaled(value: float) -> str:
    for unit, many in (("E", 1e18), ("P", 1e15), ("T", 1e12)):
        if value >= many:
            return f"{value / many:.2f} {unit}FLOP"
    return f"{value / 1e9:.2f} GFLOP"


def _span(value: float) -> str:
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
