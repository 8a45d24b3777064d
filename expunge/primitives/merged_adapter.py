"""Which adapter was merged into a network as it was opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter's folder, for a report and for a run that goes on."""

    name: str
    """The folder's."""
    kind: str
    """peft's name of it: LORA, BOUNDED."""
    digest: str
    """SHA-256 over its settings and its weights."""
