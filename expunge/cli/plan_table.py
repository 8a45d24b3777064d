"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from expunge.events import Note
from expunge.notation.parse import write
from expunge.plan.pace import seconds
from expunge.plan.plan import Plan, plan

if TYPE_CHECKING:
    from expunge.plan.machine import Machine
    from expunge.run.job import Job


def say(job: Job, machine: Machine, as_json: bool) -> None:
    """Print the plan of a job as a table, or as JSON."""
    told = Console(stderr=True, highlight=False)
    made = plan(job, machine, lambda event: told.print(event.what) if isinstance(event, Note) else None)
    said = facts(made) | {"seconds": seconds(made)}
    print(json.dumps(said, indent=1)) if as_json else show(said, Console(highlight=False))


def facts(made: Plan) -> dict[str, Any]:
    """The plan as JSON has it, but for its time."""
    paper, machine = made.paper, made.machine
    return {
        "schema": 2,
        "model": {"name": paper.name, "parameters": paper.parameters, "blocks": paper.blocks},
        "method": write(made.method),
        "machine": asdict(machine) | {"dtype": str(paper.dtype).removeprefix("torch.")},
        "steps": made.rehearsal.steps,
        "trainable": made.costs[1],
        "tokens": made.tokens,
        "flops": made.flops,
        "memory": {"phases": made.phases, "peak": made.peak, "host": made.host, "available": machine.room},
        "disk": {**made.disk, "total": sum(made.disk.values()), "free": made.free},
        "fits": not made.short,
    }


def show(said: Mapping[str, Any], console: Console) -> None:
    """Print what a run will cost."""
    model, machine, phases = said["model"], said["machine"], said["memory"]["phases"]
    steps = f"{said['steps']} steps at most" if said["steps"] else "no steps"
    console.print(
        f"{model['name']}: {model['parameters']:,} parameters in {model['blocks']} blocks, {machine['dtype']} on "
        f"{machine['processes']} x {machine['device']}; {said['trainable']:,} move; {steps}",
        soft_wrap=True,
    )
    console.print(_table("tokens, or images", said["tokens"], ""))
    console.print(_table("matrix products, each process", said["flops"], "FLOP"))
    totals = {name: sum(parts.values()) for name, parts in phases.items()}
    console.print(_table("memory while forgetting, each device", phases["forget"], "B"))
    console.print(_table("memory, each device", {**totals, "there is": said["memory"]["available"]}, "B"))
    console.print(_table("disk", said["disk"], "B"))
    total = {"total, if it does not end earlier": sum(said["seconds"].values())}
    unknown = "\nTime: not measured here. Give --rate, the TFLOP/s that one device of the machine achieves."
    console.print(_table("time", said["seconds"] | total, "s") if said["seconds"] else unknown)


def _table(title: str, rows: Mapping[str, float], unit: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"\n{title}", min_width=30)
    table.add_column("", justify="right", vertical="bottom")
    for name, value in rows.items():
        table.add_row(f"  {name}", f"{value:,.1f} s" if unit == "s" else _in_unit(value, unit))
    return table


def _in_unit(value: float, unit: str) -> str:
    scale, letter = next(((s, a) for s, a in ((1e12, "T"), (1e9, "G"), (1e6, "M")) if value >= s and unit), (1.0, ""))
    return f"{value / scale:,.{2 if letter else 0}f} {letter}{unit}"
