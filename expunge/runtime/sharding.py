"""Networks whose weights are sharded over all processes, block by block (FSDP2), for training and for audits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from expunge.core.model import Network
from expunge.internals.blocks import every_block
from expunge.runtime.processes import world_size


def shard(network: Network) -> Network:
    """The network sharded over the processes; with one process the network itself."""
    return network if world_size() == 1 else shard_over_processes(network)


def shard_over_processes(network: Network) -> Network:
    """A network with the same weights, sharded over the processes block by block.

    Where the whole network is in host memory, no device holds more of it than a block at a time. Insert adapters before
    sharding: the gradients of one that is inserted later are not reduced. Compute is in each weight's own precision
    (bfloat16 where the model is loaded so, with the adapter in float32), as in one process.
    """
    made = network.fork()
    for part in made.module.modules():  # a fork shares buffers, which are about to be moved to the device
        part._buffers.update({name: b if b is None else b.clone() for name, b in part._buffers.items()})
    module: Any = made.module
    module = module.get_base_model() if hasattr(module, "get_base_model") else module
    # It warns where the output is a view, which must not be modified in place; nothing here does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    mesh = init_device_mesh("cuda" if torch.cuda.is_initialized() else "cpu", (world_size(),))
    for block in every_block(module).values():
        fully_shard(block, mesh=mesh)
    # The output matrix is read after the forward pass, so the root's parameters stay gathered.
    fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.set_force_sum_reduction_for_comms(True)
            each.set_gradient_divide_factor(1.0)
    return made


def silent_reference(before: Network, now: Network) -> tuple[Network, Callable[[], AbstractContextManager[None]]]:
    """What answers as the original model while `now` is trained, and the context to call it in: the same shards with
    the
    adapter disabled, where there is one; else the original network, sharded too."""
    if world_size() == 1:
        return before, nullcontext
    return (now, partial(silence_adapter, now.module)) if tuners(now.module) else (shard(before), nullcontext)


def tuners(module: nn.Module) -> list[BaseTunerLayer]:
    """The adapted layers."""
    return [part for part in module.modules() if isinstance(part, BaseTunerLayer)]


@contextmanager
def silence_adapter(module: nn.Module) -> Iterator[None]:
    """The adapter is disabled. peft's own switch also changes `requires_grad`, which FSDP2 reads only once."""
    layers = tuners(module)
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


@contextmanager
def kept_on_host(network: Network) -> Iterator[None]:
    """Move the whole network to the CPU while its shards on several GPUs are trained."""
    device = network.device
    if world_size() > 1:
        network.module.to("cpu")
    yield
    network.module.to(device)


def bytes_at_work(module: nn.Module) -> float:
    """Bytes of a cut module that each process holds whole while it is asked: two blocks (one at work, the next under
    way) and what stands outside of blocks."""
    inside = [sum(p.nbytes for p in block.parameters()) for block in every_block(module).values()]
    return float(sum(p.nbytes for p in module.parameters()) - sum(inside) + 2 * max(inside, default=0))
