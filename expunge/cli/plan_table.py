"""A plan as a person reads it, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from expunge.core.request import Request
from expunge.errors import EnvironmentRefused
from expunge.events import Note, OnEvent, ignore_event
from expunge.notation.parse import write
from expunge.plan.machine import DTYPES
from expunge.plan.pace import seconds
from expunge.plan.paper import open_paper
from expunge.plan.plan import Plan, make_plan, plan, say_misfit
from expunge.run.train import say_left_out

if TYPE_CHECKING:
    from expunge.plan.machine import Machine
    from expunge.run.job import Job
    from expunge.run.train import TrainJob


def say(job: Job, machine: Machine, as_json: bool) -> None:
    """Print the plan of a job as a table, or as JSON."""
    told = Console(stderr=True, highlight=False)
    made = plan(job, machine, lambda event: told.print(event.what) if isinstance(event, Note) else None)
    said = facts(made) | {"seconds": seconds(made)}
    print(json.dumps(said, indent=1)) if as_json else show(said, Console(highlight=False))


def say_training(job: TrainJob, machine: Machine, as_json: bool) -> None:
    """The same of a training, which audits nothing."""
    told = Console(stderr=True, highlight=False)
    made = plan_training(job, machine, lambda event: told.print(event.what) if isinstance(event, Note) else None)
    said = _without_audits(facts(made) | {"seconds": seconds(made)})
    print(json.dumps(said, indent=1)) if as_json else show(said, Console(highlight=False))


def plan_training(job: TrainJob, machine: Machine, on_event: OnEvent = ignore_event) -> Plan:
    """What a training will cost on `machine`. Nothing of it is run, and no weight is read. Raises
    `EnvironmentRefused` where it cannot fit."""
    paper = open_paper(job.model, machine.device, DTYPES[machine.dtype] if machine.dtype else None)
    examples, data = job.material.read().examples(paper.network)
    for line in say_left_out(data):
        on_event(Note(line))
    request = Request(examples)
    method = job.plan().fit(paper.network, request, on_event)
    made = make_plan(paper, method, request, (), machine, job.out)
    if made.short:
        raise EnvironmentRefused(say_misfit(made))
    return made


def _without_audits(said: dict[str, Any]) -> dict[str, Any]:
    """The facts of a training: what only forgetting has is left out, and its phase has the name of what is done."""

    def keep(parts: Mapping[str, Any]) -> dict[str, Any]:
        named = {"train" if name == "forget" else name: part for name, part in parts.items()}
        return {name: part for name, part in named.items() if not name.startswith(("audit", "written"))}

    memory = said["memory"] | {"phases": keep(said["memory"]["phases"])}
    return said | {name: keep(said[name]) for name in ("tokens", "flops", "seconds")} | {"memory": memory}


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
    doing = "train" if "train" in phases else "forget"
    console.print(_table(f"memory of {doing}, each device", phases[doing], "B"))
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
