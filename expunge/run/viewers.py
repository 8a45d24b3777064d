"""A run's events for a viewer that draws curves while it goes on: TensorBoard or trackio."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from expunge.events import Checked, Event, OnEvent, Step
from expunge.run.checks import check_viewer
from expunge.runtime.processes import is_main

Write = Callable[[dict[str, float], int], None]
"""Hands a viewer the numbers of a step."""
PROJECT = "expunge"
"""What trackio files a run under."""


def numbers_of(event: Event) -> dict[str, float]:
    """The numbers of an event of a run, by the names that a viewer groups them by."""
    found: dict[str, float | None] = {}
    match event:
        case Step():
            own = {"loss": event.loss, "forget": event.forget, "retain": event.retain, "rate": event.learning_rate}
            found = {f"step/{name}": value for name, value in own.items()}
            found |= {f"gradient/{name}": value for name, value in event.gradient.items()}
            found |= {f"delta/{name}": value for name, value in event.delta.items()}
        case Checked():
            found = {"check/forget": event.forget, "check/retain": event.retain, "check/short": event.short}
    return {name: value for name, value in found.items() if value is not None}


@contextmanager
def log_events(viewer: str | None, folder: Path, name: str, on_event: OnEvent) -> Iterator[OnEvent]:
    """What is to be told of a run's events: `on_event`, and the viewer, if one is named.

    TensorBoard gets a file below `folder`; trackio a run called `name`, in its own place.
    """
    if viewer is None or not is_main():
        yield on_event
        return
    check_viewer(viewer)
    with _tensorboard(folder / viewer) if viewer == "tensorboard" else _trackio(name) as write:

        def tell(event: Event) -> None:
            if isinstance(event, Step | Checked):
                write(numbers_of(event), event.step)
            on_event(event)

        yield tell


@contextmanager
def _tensorboard(folder: Path) -> Iterator[Write]:
    from torch.utils.tensorboard import SummaryWriter  # an extra

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()  # so that who watches sees each step

    writer = SummaryWriter(str(folder))
    try:
        yield write
    finally:
        writer.close()


@contextmanager
def _trackio(name: str) -> Iterator[Write]:
    import trackio  # an extra

    with redirect_stdout(sys.stderr):  # it greets; standard output is the command's own
        run = trackio.init(project=PROJECT, name=name, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        yield lambda numbers, step: run.log(numbers, step=step)
    finally:
        with redirect_stdout(sys.stderr):
            trackio.finish()
