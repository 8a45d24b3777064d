"""A run's events for a viewer that draws curves while it goes on: TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from expunge.events import Checked, Event, OnEvent, Step
from expunge.run.checks import check_viewer
from expunge.runtime.processes import is_main


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
def log_events(viewer: str | None, folder: Path, on_event: OnEvent) -> Iterator[OnEvent]:
    """What is to be told of a run's events: `on_event`, and the viewer's file below `folder`, if one is named."""
    if viewer is None or not is_main():
        yield on_event
        return
    check_viewer(viewer)
    from torch.utils.tensorboard import SummaryWriter  # an extra

    writer = SummaryWriter(str(folder / viewer))

    def tell(event: Event) -> None:
        if isinstance(event, Step | Checked):
            for name, value in numbers_of(event).items():
                writer.add_scalar(name, value, event.step)
            writer.flush()  # so that who watches sees each step
        on_event(event)

    try:
        yield tell
    finally:
        writer.close()
