"""The bounded adapter as a peft method of its own: `peft_type` BOUNDED.

peft's `PeftType` is a closed enumeration, so a member is added to it first. A peft without expunge then raises an
error;
a LoRA configuration with extra keys would have loaded as plain LoRA, silently.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from peft.utils import register_peft_method
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from expunge.adapters import _bounded_experts as experts  # half loaded where it is what imports peft first
from expunge.adapters._fold import Start, bounded_linear
from expunge.adapters._layers import is_fused
from expunge.adapters._maps import Form, check

NAME = "BOUNDED"


def _add_member(name: str) -> None:
    """Add a member to `PeftType`."""
    if name in PeftType.__members__:
        return
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)


_add_member(NAME)


@dataclass
class BoundedConfig(PeftConfig):
    """What `adapter_config.json` holds: `delta W = (alpha / r) * map(omega * B A) / gain`, less its start."""

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Names of the layers to adapt."})
    r: int = field(default=8, metadata={"help": "Rank of B A."})
    alpha: float = field(default=16.0, metadata={"help": "The update's scale is alpha / r."})
    map: str = field(default="sine", metadata={"help": "sine, tanh, sigmoid, hardtanh, clip, identity or linear."})
    omega: float = field(default=100.0, metadata={"help": "Frequency (slope at 0) of the map."})
    gain: float | None = field(default=None, metadata={"help": "Divisor of the map; None: sqrt(in_features)."})
    start: bool = field(default=False, metadata={"help": "Whether the update of frozen factors is taken off."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Not supported; must stay None."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType(NAME)
        check(self.map, self.r, self.alpha, self.omega, self.gain)
        if self.modules_to_save:
            raise ValueError("A bounded adapter trains its own matrices only; modules_to_save must be None.")
        if isinstance(self.target_modules, list):
            self.target_modules = sorted(self.target_modules)


class BoundedLayer(nn.Module, BaseTunerLayer):
    """A linear layer with a bounded low-rank update; merged, it is the plain layer again."""

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
        """Add an adapter: A Kaiming-uniform (a = sqrt 5), B zero, both in float32, so that the update starts at 0."""
        base: Any = self.get_base_layer()
        weight = base.weight
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        a = torch.empty(config.r, self.in_features, dtype=wide, device=weight.device)
        nn.init.kaiming_uniform_(a, a=5**0.5)
        self.bounded_A[adapter_name] = nn.Parameter(a)
        self.bounded_B[adapter_name] = nn.Parameter(
            torch.zeros(self.out_features, config.r, dtype=wide, device=weight.device)
        )
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

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        silent = self.disable_adapters or self.merged
        active = [] if silent else [name for name in self.active_adapters if name in self.bounded_A]
        if not active:
            output: Tensor = self.base_layer(x, *args, **kwargs)
            return output
        base: Any = self.get_base_layer()
        weight = base.weight.T if self.transposed else base.weight
        for name in active[1:]:
            weight = weight + self.get_delta_weight(name).to(weight.dtype)
        name = active[0]
        a, b, form = self.bounded_A[name], self.bounded_B[name], self.bounded_form[name]
        return bounded_linear(x, weight, base.bias, a, b, form, self.start_of(name))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Never: the update has full rank."""
        return False


class BoundedModel(BaseTuner):
    """Inserts bounded layers into a model."""

    prefix = "bounded_"
    tuner_layer_cls = BoundedLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
        **_: Any,
    ) -> None:
        config = cast(BoundedConfig, peft_config)
        if isinstance(target, BoundedLayer | experts.BoundedExperts):
            target.update_layer(adapter_name, config)
            return
        new: BoundedLayer | experts.BoundedExperts
        if isinstance(target, (nn.Linear, Conv1D)):
            new = BoundedLayer(target, adapter_name, config)
        elif is_fused(target):
            new = experts.BoundedExperts(target, adapter_name, config)
        else:
            raise TypeError(f"{current_key} is a {type(target).__name__}; bounded adapters take linear layers.")
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, experts.BoundedExperts):  # experts have no `weight`, which peft would copy
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


register_peft_method(name=NAME.lower(), config_cls=BoundedConfig, model_cls=BoundedModel)
