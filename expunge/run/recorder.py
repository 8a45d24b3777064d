"""Events of a run as they come: into a file, into the report, and on to whoever waits."""

from __future__ import annotations

import json
from pathlib import Path

from expunge.events import Checked, Edited, Ended, Event, Note, OnEvent, Started, Step
from expunge.notation.typed_json import event_to_json
from expunge.report.run import Run, Saved
from expunge.runtime.processes import is_main


class Recorder:
    """Keeps what a report needs of a run's events; `path` is where its steps are written meanwhile."""

    def __init__(self, on_event: OnEvent, path: Path | None = None) -> None:
        self.on_event, self.path = on_event, path
        self.steps: list[Step | Checked] = []
        self.started: Started | None = None
        self.edited: Edited | None = None
        self.ended: Ended | None = None
        self.parts: int | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Step() | Checked():
                self.steps.append(event)
                self._write(event)
            case Started():
                self.started = event
            case Edited():
                self.edited = event
            case Ended():
                self.ended = event
            case Note() if event.parts is not None:
                self.parts = event.parts
        self.on_event(event)

    def _write(self, event: Step | Checked) -> None:
        if self.path and is_main():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event_to_json(event)) + "\n")

    @property
    def size(self) -> int:
        """Tokens (or images) that the steps read."""
        return sum(step.size for step in self.steps if isinstance(step, Step))

    def run(self, saved: Saved) -> Run:
        """What the method did, as far as it said."""
        return Run(self.started, self.edited, self.ended, self.parts, saved)
