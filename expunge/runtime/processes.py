"""One process or many: torchrun starts them, FSDP2 shards the weights over them, and each rank reads its share of a
step.

Every rank draws the same batch and reads its share of each set. Losses are divided by the whole step's counts, so
gradients are summed over the ranks (FSDP2 would average them), and the step equals that of one process. All ranks must
call every function of this file, in the same order; with one process they do nothing.
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
"""Timeout of collectives within a step."""

LONG = timedelta(days=365)
"""Timeout of barriers between steps, where one rank may have much to do that the others have not."""

_meeting = itertools.count()
_lines: list[dist.ProcessGroup] = []
"""Process groups for barriers alone: their connections break when a process dies."""
T = TypeVar("T")


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this is rank 0, which prints and writes."""
    return rank() == 0


# Beginning and end


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Initialise the process group where torchrun started several processes; yields this rank's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    try:
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        _lines.append(dist.new_group(backend="gloo", timeout=LONG))
        yield device
        barrier()  # torchrun kills all ranks as soon as one has failed: none leaves before rank 0 has printed
        _ending()
        dist.destroy_process_group()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            _fail_without_it(error)
        raise


def speaks_for_all() -> bool:
    """Whether this rank prints why the run ends: the first that calls this. Call it once, at the end."""
    if not dist.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        return bool(_store().add("ended", 1) == 1)
    except RuntimeError:  # the store's process is gone: rather print twice than never
        return True


def _on_signal(number: int, _: object) -> NoReturn:
    _ending()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    _fail_without_it(None)


def _ending() -> None:
    """Ignore further signals: torchrun sends one to all ranks when one has ended, and it must not interrupt the
    clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _fail_without_it(error: Exception | None) -> NoReturn:
    _ending()
    raise RunFailed(
        f"Process {rank()} of {world_size()} lost another rank: it died, was killed, or did not answer "
        f"within {PATIENCE.seconds} s. No result was written. "
        f"--resume goes on from the last checkpoint, where there is one."
    ) from error


# Barriers without a timeout: arrivals are counted in torchrun's store, which is polled, so that signals are handled. An
# asynchronous gloo barrier runs beside it, which fails as soon as a process dies that has not arrived.


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _barrier() -> Any:
    return dist.barrier(_lines[-1], async_op=True)


def _until(ready: Callable[[], bool]) -> None:
    barrier, pause = _barrier(), 0.001
    while not ready():
        if barrier.is_completed() and not ready():  # a rank that has passed may have left already
            barrier.wait()  # raises where it failed
        if _store().check(["ended"]) and not ready():  # it may have arrived in time, and ended afterwards
            _fail_without_it(None)
        time.sleep(pause)
        pause = min(0.1, 2 * pause)


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        key = f"meet/{next(_meeting)}"
        _store().add(key, 1)
        _until(lambda: _store().add(key, 0) == world_size())


def broadcast(make: Callable[[], T]) -> T:
    """The value that `make` returns in rank 0, in all ranks. It must be JSON-serialisable."""
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
    """The folder that rank 0 makes, in all ranks; its context ends when all are done with it."""
    with made if is_main() else nullcontext() as folder:
        yield Path(broadcast(lambda: str(folder)))
        barrier()
    barrier()


# Numbers


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all ranks, on the CPU, the same to the bit in each."""
    values = values.detach().cpu().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def local_part(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full(tensor: Tensor) -> Tensor:
    """The full tensor of a DTensor; other tensors as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of_step(sets: Mapping[str, Batch]) -> tuple[dict[str, Batch], frozenset[str]]:
    """This rank's share of a step, and the sets of which it has no example.

    Of those it gets one example all the same: FSDP gathers weights within the forward pass, so each rank must run the
    model as often as the others do.
    """
    own = {
        name: batch[len(batch) * rank() // world_size() : len(batch) * (rank() + 1) // world_size()]
        for name, batch in sets.items()
    }
    absent = frozenset(name for name, batch in own.items() if not batch)
    return {name: batch or sets[name][:1] for name, batch in own.items()}, absent
