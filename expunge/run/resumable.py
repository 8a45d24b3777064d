"""A run that leaves checkpoints beside the place of its result, and its last good adapter there where it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expunge.core.adapter import Adapted
from expunge.core.method import Method
from expunge.core.model import Model
from expunge.core.request import Request
from expunge.errors import RunFailed
from expunge.events import Note, OnEvent
from expunge.run.files import failed_folder, keep_failed
from expunge.runtime.processes import broadcast
from expunge.train.checkpoint import Checkpoints, keep_checkpoints


def checkpoints_beside(out: Path, every: int, resume: bool) -> Checkpoints | None:
    """Where the checkpoints of a run lie whose result will be `out`; None where it is to leave none."""
    return Checkpoints(out.with_name(f"{out.name}.checkpoints"), every, resume) if every else None


@dataclass(frozen=True)
class Resumable:
    """A method's run, by the place of its result."""

    out: Path
    checkpoints: Checkpoints | None

    def change(self, method: Method, model: Model, request: Request, on_event: OnEvent, steps: Path | None) -> Model:
        """Run the method; where it fails, keep the last good adapter and its `steps` beside the place of the result."""
        try:
            with keep_checkpoints(self.checkpoints):
                return method(model, request, on_event)
        except RunFailed as error:
            adapted = error.last_good
            if not isinstance(adapted, Adapted) or steps is None:
                raise
            kept = Path(broadcast(lambda: str(failed_folder(self.out))))
            broadcast(lambda: keep_failed(kept, adapted, steps))
            if self.checkpoints:
                self.checkpoints.remove()  # they would lead to the same step
            raise RunFailed(f"{error} The last good adapter and the steps are in {kept}.") from error

    @contextmanager
    def finishing(self, on_event: OnEvent) -> Iterator[None]:
        """Around all that makes the result: then the checkpoints go; who interrupts it is told where they are."""
        try:
            yield
        except KeyboardInterrupt:
            if self.checkpoints and self.checkpoints.steps():
                on_event(Note(f"Checkpoints are in {self.checkpoints.folder}; --resume goes on from them"))
            raise
        if self.checkpoints:
            self.checkpoints.remove()
