"""Base class of adapters in peft's form: injection into a fork, merging, reading the update, saving."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._layers import Targets, choose_layers, stacks
from expunge.core.adapter import Adapter
from expunge.runtime.atomic_files import open_to_readers

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

    from expunge.core.model import Network
    from expunge.core.request import Request


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's warnings on injecting an adapter."""
    with warnings.catch_warnings():
        # peft asks transformers for a property by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        # a warning for each of GPT-2's layers, whose weights are [in, out]
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        yield


class PeftAdapter(Adapter):
    """An adapter in peft's form. Its module is a `PeftModel` over the network's own storage."""

    @abstractmethod
    def config(self, names: list[str], experts: list[str]) -> PeftConfig:
        """peft's configuration for the named layers, of which those in `experts` are a mixture's fused experts."""

    @abstractmethod
    def portable(self, adapted: Network) -> Network:
        """The same update, in the form that is saved."""

    @property
    @abstractmethod
    def where(self) -> tuple[Targets, tuple[int, ...] | None, str | None]:
        """`targets`, `layers` and `part` of the adapter."""

    def check(self, network: Network) -> None:
        choose_layers(network.module, *self.where)

    def insert(self, network: Network, request: Request) -> Network:
        fork = network.fork()
        with quiet():
            names = choose_layers(network.module, *self.where)
            experts = [name for name in names if name in stacks(network.module, self.where[2])]
            module = get_peft_model(fork.module, self.config(names, experts))
        return fork.fork(module.eval())

    def merge(self, adapted: Network) -> Network:
        copy: Any = adapted.fork().module
        return adapted.fork(copy.merge_and_unload(safe_merge=True))

    def deltas(self, adapted: Network, before: Network) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
        return updates(adapted.module)

    def save(self, adapted: Network, folder: Path) -> None:
        module: Any = self.portable(adapted).module
        module.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        for path in folder.iterdir():
            open_to_readers(path)  # safetensors writes a temporary file that only its owner may read
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card is an empty template


def updates(module: nn.Module) -> Iterator[tuple[str, Float[Tensor, "out in"]]]:
    """The update of each layer, and of each expert, of a model with adapters of peft in it, by the layer's name."""
    for peft_name, part in module.named_modules():
        name = peft_name.removeprefix("base_model.model.")
        if isinstance(part, BoundedExperts):
            yield from ((f"{name}.{which}", delta) for which, delta in part.changes())
        elif isinstance(part, BaseTunerLayer):
            layer: Any = part
            update: Any = sum(map(layer.get_delta_weight, layer.active_adapters))  # a start is one too
            transposed = getattr(layer, "fan_in_fan_out", False)  # peft's LoRA of GPT-2 has it as the weight is
            yield name, update.detach().T if transposed else update.detach()
