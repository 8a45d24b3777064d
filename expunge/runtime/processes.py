"""One process or many: torchrun starts them, FSDP2 cuts the weights over them, and each reads its part of a step.

Every process draws the same step and reads its share of each set. Losses are divided by the whole step's counts, so
gradients are added up over the processes (FSDP2 would average them), and the step is that of one process. What must be
known: whatever stands here is called by all processes, in the same order; with one process all of it does nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from expunge.core.model import Batch
from expunge.errors import RunFailed

PATIENCE = timedelta(seconds=45)
"""How long a process waits in the middle of a step for one that does not answer."""

LONG = timedelta(days=365)
"""How long it waits between steps, where one may have much to do that the others have not, for one that is alive."""

_meeting = itertools.count()
_lines: list[dist.ProcessGroup] = []
"""Connections that nothing goes through but waiting: they break when a process dies."""
T = TypeVar("T")


def world_size() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


# Beginning and end


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, where it started several; the device that this one computes on."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _told_to_end)
    try:
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        _lines.append(dist.new_group(backend="gloo", timeout=LONG))
        yield device
        barrier()  # torchrun ends all as soon as one has failed: nobody leaves before the first has said what it has to
        _ending()
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            _lost(error)
        raise


def speaks_for_all() -> bool:
    """Whether this process says why the run ends: the first that knows. Asked once, when it ends."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        return bool(_store().add("ended", 1) == 1)
    except RuntimeError:  # whoever kept the note is gone: rather twice than never
        return True


def _told_to_end(number: int, _: object) -> NoReturn:
    _ending()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _lost(None)


def _ending() -> None:
    """From here on a signal of torchrun's, which tells all others when one has ended, does not cut the ending short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _lost(error: Exception | None) -> NoReturn:
    _ending()
    raise RunFailed(
        f"Process {rank()} of {world_size()} lost another one: it died, was ended from outside, or did not answer "
        f"within {PATIENCE.seconds} s. No result was written. "
        f"--resume goes on from the last checkpoint, where there is one."
    ) from error


# Waiting for one another, for as long as it takes: who is there stands in torchrun's store. Beside that a barrier is on
# its way, in which nobody waits, so signals are heard: it fails as soon as a process dies that has not come to it.


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _barrier() -> Any:
    return dist.barrier(_lines[-1], async_op=True)


def _until(ready: Callable[[], bool]) -> None:
    barrier, pause = _barrier(), 0.001
    while not ready():
        if barrier.is_completed() and not ready():  # who is through may have left already
            barrier.wait()  # raises where it failed
        if _store().check(["ended"]) and not ready():  # it may have come in time, and ended after that
            _lost(None)
        time.sleep(pause)
        pause = min(0.1, 2 * pause)


def barrier() -> None:
    """Goes on when every process is here."""
    if world_size() > 1:
        key = f"meet/{next(_meeting)}"
        _store().add(key, 1)
        _until(lambda: _store().add(key, 0) == world_size())


def broadcast(make: Callable[[], T]) -> T:
    """What the first process makes (as JSON has it), for all."""
    if world_size() == 1:
        return make()
    key = f"told/{next(_meeting)}"
    if is_main():
        _store().set(key, json.dumps(make()))
        _barrier()
    else:
        _until(lambda: _store().check([key]))
    made: T = json.loads(_store().get(key))
    return made


@contextmanager
def shared_folder(made: AbstractContextManager[Path]) -> Iterator[Path]:
    """The folder that the first process makes, for all: it ends when all are done with it."""
    with made if is_main() else nullcontext() as folder:
        yield Path(broadcast(lambda: str(folder)))
        barrier()
    barrier()


# Numbers


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU, the same to the bit for each."""
    values = values.detach().cpu().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def local_part(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut over all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full(tensor: Tensor) -> Tensor:
    """All of a tensor that is cut over all."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of_step(sets: Mapping[str, Batch]) -> tuple[dict[str, Batch], frozenset[str]]:
    """This process's share of a step, and the sets of which it has none.

    Of those it is given one example to read all the same: the processes hand each other weights as they go, so each
    must call the model as often as the others do.
    """
    own = {
        name: batch[len(batch) * rank() // world_size() : len(batch) * (rank() + 1) // world_size()]
        for name, batch in sets.items()
    }
    absent = frozenset(name for name, batch in own.items() if not batch)
    return {name: batch or sets[name][:1] for name, batch in own.items()}, absent
