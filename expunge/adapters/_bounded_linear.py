"""A linear layer with a bounded low-rank update, one of several adapters or none at a time."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.adapters._bounded_config import BoundedConfig
from expunge.adapters._fold import Start, bounded_linear
from expunge.adapters._maps import Form, initialise
from expunge.errors import UsageRefused

BASE = "__base__"
"""What peft calls the base model among the `adapter_names` of a mixed batch."""


class BoundedLinear(nn.Module, BaseTunerLayer):
    """A linear layer with a bounded low-rank update; merged, it is the plain layer again.

    peft looks for "Linear" in the name of such a class where `target_modules` is "all-linear".
    """

    adapter_layer_names = ("bounded_A", "bounded_B")
    other_param_names = ("bounded_form", "bounded_start_A", "bounded_start_B")

    def __init__(self, base_layer: nn.Linear | Conv1D, adapter_name: str, config: BoundedConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bounded_A = nn.ParameterDict()
        self.bounded_B = nn.ParameterDict()
        self.bounded_start_A = nn.ParameterDict()
        self.bounded_start_B = nn.ParameterDict()
        self.bounded_form: dict[str, Form] = {}
        self.unmerged: Tensor | None = None
        """The weight from before a merge, so that unmerging restores it to the bit."""
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        transposed = isinstance(base_layer, Conv1D)
        shape = base_layer.weight.shape
        self.in_features, self.out_features = shape if transposed else shape[::-1]
        self.transposed = transposed
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BoundedConfig) -> None:
        """Add an adapter, in float32 at least; unless `init_weights` is False its update starts at 0."""
        base: Any = self.get_base_layer()
        weight = base.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        a = torch.empty(config.r, self.in_features, dtype=wide, device=weight.device)
        b = torch.empty(self.out_features, config.r, dtype=wide, device=weight.device)
        initialise(a, b, config.init_weights)
        self.bounded_A[adapter_name], self.bounded_B[adapter_name] = nn.Parameter(a), nn.Parameter(b)
        self.bounded_form[adapter_name] = Form.of(
            config.map, config.r, config.alpha, config.omega, config.gain, self.in_features
        )
        if config.start:  # its values are then loaded from a file
            self.keep_start(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def start_of(self, adapter: str) -> Start | None:
        """The initial factors, whose update is subtracted; None where the update starts at 0 by itself."""
        known = adapter in self.bounded_start_A
        return (self.bounded_start_A[adapter], self.bounded_start_B[adapter]) if known else None

    def keep_start(self, adapter: str) -> None:
        """From now on subtract the update of the current factors, so that it starts at 0 again."""
        for start, now in ((self.bounded_start_A, self.bounded_A), (self.bounded_start_B, self.bounded_B)):
            start[adapter] = nn.Parameter(now[adapter].detach().clone(), requires_grad=False)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The update [out, in], in the adapter's precision."""
        form, start = self.bounded_form[adapter], self.start_of(adapter)
        with torch.no_grad():
            delta = form.delta(self.bounded_A[adapter], self.bounded_B[adapter])
            return delta if start is None else delta.sub_(form.delta(*start))

    def merge(self, safe_merge: bool = True, adapter_names: list[str] | None = None) -> None:
        """Merge the update into a new weight tensor. Raises `ValueError` on NaN or Inf."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.bounded_A]
        base: Any = self.get_base_layer()
        for name in names:
            delta = self.get_delta_weight(name)
            new = (base.weight.data + (delta.T if self.transposed else delta)).to(base.weight.dtype)
            if not torch.isfinite(new).all():
                raise ValueError(f"The adapter {name} holds NaN or Inf and was not merged.")
            self.unmerged = base.weight.data if self.unmerged is None else self.unmerged
            base.weight.data = new
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the weight from before the merge."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        assert self.unmerged is not None
        base: Any = self.get_base_layer()
        base.weight.data = self.unmerged
        self.unmerged = None
        self.merged_adapters.clear()

    def originals(self) -> dict[str, Tensor]:
        """The base's tensors that a merge replaced, by name."""
        return {} if self.unmerged is None else {"weight": self.unmerged}

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or (self.merged and adapter_names is None):
            return self._through((), x, *args, **kwargs)
        if adapter_names is None:
            return self._through(self.active_adapters, x, *args, **kwargs)
        self._check_mixed(len(x), adapter_names)
        made: Tensor | None = None
        for name in dict.fromkeys(adapter_names):
            rows = [row for row, each in enumerate(adapter_names) if each == name]
            part = self._through(() if name == BASE else (name,), x[rows], *args, **kwargs)
            made = part.new_empty(len(x), *part.shape[1:]) if made is None else made
            made[rows] = part
        assert made is not None
        return made

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """To the device alone: peft would round the factors to the precision of the base as well."""
        base: Any = self.get_base_layer()
        place = base.weight.device if device is None else device
        for part in self._factors(adapter_name):
            part.data = part.data if part.is_meta else part.data.to(place)

    def _factors(self, adapter_name: str) -> list[nn.Parameter]:
        dicts = (self.bounded_A, self.bounded_B, self.bounded_start_A, self.bounded_start_B)
        return [each[adapter_name] for each in dicts if adapter_name in each]

    def _check_mixed(self, inputs: int, adapter_names: list[str]) -> None:
        if self.merged:
            raise UsageRefused("adapter_names: adapters are merged. Call `unmerge_adapter()` first.")
        if inputs != len(adapter_names):
            raise UsageRefused(
                f"adapter_names must name an adapter for each input. Got {len(adapter_names)} names, and a layer got "
                f"{inputs} inputs; where experts are layers of their own, no input is an example."
            )

    def _through(self, names: list[str] | tuple[str, ...], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The input times the weight with the updates of the named adapters, of those that this layer has."""
        known = [name for name in names if name in self.bounded_A]
        if not known:
            output: Tensor = self.base_layer(x, *args, **kwargs)
            return output
        base: Any = self.get_base_layer()
        weight, bias = base.weight.T if self.transposed else base.weight, base.bias
        made: Tensor | None = None
        for name in known:
            a, b, form = self.bounded_A[name], self.bounded_B[name], self.bounded_form[name]
            part = bounded_linear(x, weight, bias, a, b, form, self.start_of(name))
            made = part if made is None else made + part
            weight, bias = torch.zeros_like(weight), None  # of further adapters the update alone is added
        assert made is not None
        return made
