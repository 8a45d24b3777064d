"""Checkpoints of a run, written atomically: trainable parameters, optimizer, best step and events.

Tensors are sharded over the processes, in safetensors files; the rest is JSON; nothing is pickled. A run that is
resumed
with the same number of processes equals an uninterrupted one to the bit (on a CPU); with another number, to rounding.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from expunge.core.model import Network
from expunge.core.request import Request
from expunge.errors import ModelRefused, Refusal, UsageRefused
from expunge.primitives.out_of_memory import is_out_of_memory
from expunge.runtime.atomic_files import (
    check_manifest,
    is_disk_full,
    remove,
    scratch_name,
    whole_folder,
    write_manifest,
    write_text,
)
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
        for path in self._scratch():
            remove(path)  # a run was killed while it wrote or removed these
        if self.resume and not there:
            raise UsageRefused(f"{self.folder} has no checkpoint to resume from. Leave out --resume.")
        if there and not self.resume:
            raise UsageRefused(
                f"{self.folder} holds checkpoints of a run that did not end. Give --resume, or remove the folder."
            )

    def steps(self) -> list[Path]:
        """The checkpoints, newest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        ours = (path for path in found if re.fullmatch(r"step-[0-9]{6,18}", path.name) and path.is_dir())
        return sorted(ours, key=lambda path: int(path.name[5:]), reverse=True)

    def compare(self, method: object, network: Network, request: Request) -> None:
        """Refuse early to resume another run.

        Only the manifests are read; whether a checkpoint is complete is checked when it is read. Of a method around
        another that one wrote them, and compares them as it starts.
        """
        for path in self.steps() if self.resume else ():
            try:
                manifest = check_manifest(path, lambda name: False)
            except ModelRefused:
                continue
            run = manifest.get("run")
            wrote = str(run.get("method")) if isinstance(run, dict) else ""
            if wrote.startswith(f"{type(method).__name__}("):
                _match(path, manifest, facts(method, network, request))
            return

    def write(self, step: int, facts: Mapping[str, str], tensors: Mapping[str, Tensor], state: object) -> None:
        """Write the state after `step`; `facts` are what the run depends on."""
        with shared_folder(whole_folder(self.folder / f"step-{step:06}")) as folder:
            writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
            with _quiet(), _unwrap_errors():
                state_dict_saver.save(dict(tensors), storage_writer=writer, no_dist=world_size() == 1)
            barrier()
            if is_main():
                write_text(folder / STATE, json.dumps(state))
                write_manifest(folder, step=step, processes=world_size(), run=dict(facts))
        for old in self.steps()[KEPT:] if is_main() else ():
            _discard(old)

    def read(self, facts: Mapping[str, str], tensors: dict[str, Tensor]) -> tuple[int, Any, list[str]]:
        """Fill `tensors` from the newest complete checkpoint. Returns its step, its state, and why newer ones were
        skipped.

        Tensors that only the checkpoint has are added.
        """
        name, manifest, passed = broadcast(lambda: self._newest())
        _match(self.folder / name, manifest, facts)
        reader = HuggingFaceStorageReader(path=str(self.folder / name))
        with refuse_misfits(self.folder / name):
            for key, there in reader.read_metadata().state_dict_metadata.items():
                if isinstance(there, TensorStorageMetadata):
                    if key in tensors and tensors[key].dtype != there.properties.dtype:
                        raise TypeError(key)
                    tensors.setdefault(key, torch.empty(there.size, dtype=there.properties.dtype))
            with _quiet(), _unwrap_errors():
                state_dict_loader.load(tensors, storage_reader=reader, no_dist=world_size() == 1)
            state = json.loads((self.folder / name / STATE).read_text(encoding="utf-8"))
            return int(manifest["step"]), state, passed

    def remove(self) -> None:
        """Remove the checkpoints after the run has ended; files in the folder that are not ours stay."""
        if is_main():
            for path in (*self.steps(), *self._scratch()):
                _discard(path)
            with suppress(OSError):
                self.folder.rmdir()

    def _scratch(self) -> list[Path]:
        """What is left of checkpoints: begun by a process that is gone, or half removed, or found damaged."""
        names = re.compile(r"\.step-\d{6,}\.tmp-[0-9a-f-]+|step-\d{6,}\.torn-\d+")
        return [p for p in self.folder.iterdir() if names.fullmatch(p.name)] if self.folder.is_dir() else []

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
    """What a run depends on: a resumed run must have the same; `adapter` only of a model that one was merged into."""
    digest = hashlib.sha256()
    for name, examples in request.sets().items():
        digest.update(f"{name}:{len(examples)};".encode())
        for example in examples:
            digest.update(example.input_digest())  # in order, which the batches depend on
    merged = {"adapter": network.adapter.digest} if network.adapter else {}
    return {"method": repr(method), "model": network.fingerprint(), **merged, "data": digest.hexdigest()}


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint so that, killed half-way, it has no name by which it could be taken for a whole one."""
    scratch = scratch_name(checkpoint)
    with suppress(OSError):
        checkpoint.rename(scratch)
        remove(scratch)


@contextmanager
def refuse_misfits(checkpoint: Path) -> Iterator[None]:
    """Refuse a checkpoint whose manifest fits but whose content does not: somebody wrote both."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OSError) as error:
        if is_disk_full(error) or is_out_of_memory(error):
            raise
        raise ModelRefused(
            f"{checkpoint} does not hold the state of this run ({type(error).__name__}), though its manifest fits it. "
            f"Remove it to go on from the one before, or start again in another --out."
        ) from error


@contextmanager
def _unwrap_errors() -> Iterator[None]:
    """Errors of torch's checkpoints as they were raised: it wraps even Ctrl-C, in a class that is no `Exception`."""
    try:
        yield
    except CheckpointException as wrapped:
        errors = [error for error, _ in wrapped.failures.values()]
        for error in errors:
            if isinstance(error, KeyboardInterrupt | SystemExit | Refusal):
                raise error from None
        raise errors[0] from None


def _match(folder: Path, manifest: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Refuse a checkpoint with other `facts`."""
    run = manifest.get("run")
    there = run if isinstance(run, dict) else {}
    differ = [key for key in {**facts, **there} if there.get(key) != facts.get(key)]
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
