"""Models without the adapters in them: as if none had been inserted, and after one was refused."""

from __future__ import annotations

import copy
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer, delete_adapter
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from expunge.adapters._bounded_experts import BoundedExperts
from expunge.adapters._bounded_linear import BoundedLinear


def strip(model: nn.Module) -> nn.Module:
    """The model without adapters: modules anew where there are any, over the same tensors."""
    if not any(isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in model.modules()):
        return model
    tensors = [*model.parameters(), *model.buffers()]
    bare = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for name, part in list(bare.named_modules()):
        if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper):
            plain = part.get_base_layer() if isinstance(part, BaseTunerLayer) else part.original_module
            parent, _, key = name.rpartition(".")
            setattr(bare.get_submodule(parent), key, plain)
    return bare


def withdraw(model: nn.Module, adapter_name: str) -> None:
    """Take an adapter that was refused out of a model again, and with the last one all of its layers."""
    if isinstance(model, PeftModel) and len(model.peft_config) > 1:
        model.delete_adapter(adapter_name)
        return
    inside: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    delete_adapter(inside, adapter_name, "bounded_", BaseTunerLayer)
    for name, part in list(inside.named_modules()):
        if isinstance(part, BoundedLinear | BoundedExperts) and not len(part.bounded_A):
            parent, _, key = name.rpartition(".")
            setattr(inside.get_submodule(parent), key, part.get_base_layer())
        if isinstance(part, AuxiliaryTrainingWrapper) and not part._adapters - {adapter_name}:
            parent, _, key = name.rpartition(".")
            setattr(inside.get_submodule(parent), key, part.original_module)
    if not any(isinstance(part, BaseTunerLayer) for part in inside.modules()):
        inside.__dict__.pop("peft_config", None)
