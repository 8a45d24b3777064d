"""A plan as a person reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from expunge.plan.pace import seconds
from expunge.plan.plan import facts, plan

if TYPE_CHECKING:
    from expunge.plan.machine import Machine
    from expunge.run.unlearn import Job


def say(job: Job, machine: Machine, as_json: bool) -> None:
    """Print the plan of a job as a table, or as JSON."""
    made = plan(job, machine)
    said = facts(made, seconds(made))
    if as_json:
        print(json.dumps(said, indent=1))
    else:
        show(said, "images" if made.paper.shape else "tokens", Console(highlight=False))


def show(said: Mapping[str, Any], unit: str, console: Console) -> None:
    """Print what a run will cost."""
    model, machine, phases = said["model"], said["machine"], said["memory"]["phases"]
    console.print(
        f"{model['name']}: {model['parameters']:,} parameters in {model['blocks']} blocks, {machine['dtype']} on "
        f"{machine['processes']} x {machine['device']}; {said['trainable']:,} move; "
        f"{str(said['steps']) + ' steps at most' if said['steps'] else 'no steps'}",
        soft_wrap=True,
    )
    console.print(_table(unit, said["tokens"], "{:,.0f}"))
    console.print(_table("matmul FLOPs, each process", said["flops"], "{:.3g} TFLOP", 1e12))
    totals = {name: sum(parts.values()) for name, parts in phases.items()}
    console.print(_table("memory while forgetting, each device", phases["forget"], "{:.4f} GB", 1e9))
    console.print(_table("memory, each device", {**totals, "there is": said["memory"]["available"]}, "{:.4f} GB", 1e9))
    console.print(_table("disk", said["disk"], "{:.4f} GB", 1e9))
    if said["seconds"]:
        console.print(_table("time", {**said["seconds"], "total": sum(said["seconds"].values())}, "{:.1f} s"))
        console.print("A run that has forgotten enough ends earlier.")
    else:
        console.print("\nTime: not measured here. Give --rate, the TFLOP/s that one device of the machine achieves.")


def _table(title: str, rows: Mapping[str, float], form: str, unit: float = 1.0) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"\n{title}", min_width=30)
    table.add_column("", justify="right", vertical="bottom")
    for name, value in rows.items():
        table.add_row(f"  {name}", form.format(value / unit))
    return table
