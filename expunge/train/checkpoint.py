"""Checkpoints of a run, written atomically: trainable parameters, optimizer, best step and events.

Tensors are sharded over the processes, in safetensors files; the rest is JSON; nothing is pickled. A run that is
resumed
with the same number of processes equals an uninterrupted one to the bit (on a CPU); with another number, to rounding.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from expunge.core.model import Network
from expunge.core.request import Request
from expunge.errors import ModelRefused, UsageRefused
from expunge.runtime.atomic_files import check_manifest, whole_folder, write_manifest, write_text
from expunge.runtime.processes import barrier, broadcast, is_main, shared_folder, world_size

KEPT = 2
"""Checkpoints that are kept: the newest, and the one before it in case the newest is damaged."""

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoints:
    """A folder of checkpoints, named after their steps."""

    folder: Path
    every: int = 10
    """Steps between two checkpoints; the last step of a run needs none."""
    resume: bool = False
    """Whether a run starts from the newest complete checkpoint."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageRefused(f"Steps between two checkpoints must be at least 1. Got {self.every!r}.")

    def check(self) -> None:
        """Refuse to resume without a checkpoint, and to start over the checkpoints of an unfinished run."""
        there = bool(self.steps())
        if self.resume and not there:
            raise UsageRefused(f"{self.folder} has no checkpoint to resume from. Leave out --resume.")
        if there and not self.resume:
            raise UsageRefused(
                f"{self.folder} holds checkpoints of a run that did not end. Give --resume, or remove the folder."
            )

    def steps(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((path for path in found if path.name[5:].isdigit()), key=lambda p: int(p.name[5:]), reverse=True)

    def compare(self, method: object, network: Network, request: Request) -> None:
        """Refuse early to resume another run.

        Only the manifests are read; whether a checkpoint is complete is checked when it is read.
        """
        for path in self.steps() if self.resume else ():
            try:
                manifest = check_manifest(path, lambda name: False)
            except ModelRefused:
                continue
            _match(path, manifest, facts(method, network, request))
            return

    def write(self, step: int, facts: Mapping[str, str], tensors: Mapping[str, Tensor], state: object) -> None:
        """Write the state after `step`; `facts` are what the run depends on."""
        with shared_folder(whole_folder(self.folder / f"step-{step:06}")) as folder:
            writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
            with _quiet():
                state_dict_saver.save(dict(tensors), storage_writer=writer, no_dist=world_size() == 1)
            barrier()
            if is_main():
                write_text(folder / STATE, json.dumps(state))
                write_manifest(folder, step=step, processes=world_size(), run=dict(facts))
        for old in self.steps()[KEPT:] if is_main() else ():
            shutil.rmtree(old)

    def read(self, facts: Mapping[str, str], tensors: dict[str, Tensor]) -> tuple[int, Any, list[str]]:
        """Fill `tensors` from the newest complete checkpoint. Returns its step, its state, and why newer ones were
        skipped.

        Tensors that only the checkpoint has are added.
        """
        name, manifest, passed = broadcast(lambda: self._newest())
        _match(self.folder / name, manifest, facts)
        reader = HuggingFaceStorageReader(path=str(self.folder / name))
        for key, there in reader.read_metadata().state_dict_metadata.items():
            if isinstance(there, TensorStorageMetadata):
                tensors.setdefault(key, torch.empty(there.size, dtype=there.properties.dtype))
        with _quiet():
            state_dict_loader.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
        return int(manifest["step"]), json.loads((self.folder / name / STATE).read_text(encoding="utf-8")), passed

    def remove(self) -> None:
        """Remove the folder after the run has ended."""
        if is_main():
            shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self) -> tuple[str, dict[str, Any], list[str]]:
        passed: list[str] = []
        for path in self.steps():
            try:
                manifest = check_manifest(path)
            except ModelRefused as error:
                passed.append(str(error))
                continue
            for damaged in self.steps()[: len(passed)]:  # the run will write these steps again
                damaged.rename(self.folder / f"{damaged.name}.torn-{time.time_ns()}")
            return path.name, manifest, passed
        raise ModelRefused(f"No checkpoint in {self.folder} is complete. {' '.join(passed)}")


_of_run: ContextVar[Checkpoints | None] = ContextVar("checkpoints", default=None)


@contextmanager
def keep_checkpoints(checkpoints: Checkpoints | None) -> Iterator[None]:
    """Within the block a run of a resumable method writes checkpoints, or resumes from the newest."""
    token = _of_run.set(checkpoints)
    try:
        yield
    finally:
        _of_run.reset(token)


def checkpoints_of_run() -> Checkpoints | None:
    """The checkpoints of the current run; None where it has none."""
    return _of_run.get()


def facts(method: object, network: Network, request: Request) -> dict[str, str]:
    """What a run depends on: a resumed run must have the same."""
    digest = hashlib.sha256()
    for name, examples in request.sets().items():
        digest.update(f"{name}:{len(examples)};".encode())
        for example in examples:
            digest.update(example.input_digest())  # in order, which the batches depend on
    return {"method": repr(method), "model": network.fingerprint(), "data": digest.hexdigest()}


def _match(folder: Path, manifest: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Refuse a checkpoint with other `facts`."""
    run = manifest.get("run")
    differ = [key for key, value in facts.items() if not isinstance(run, dict) or run.get(key) != value]
    if differ:
        raise ModelRefused(
            f"{folder} is of another run: its {' and its '.join(differ)} {'differ' if differ[1:] else 'differs'}. "
            f"Give the same as for that run, or start again in another --out."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that there is a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
