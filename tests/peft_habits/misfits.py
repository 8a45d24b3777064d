"""What should not be loaded: other bases, and files that were changed."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.peft_habits.kinds import Habit, Kind, folder, llama, put, shake


def _load(kind: Kind, base: nn.Module, change: Callable[[Path], None] = lambda _: None, **settings: Any) -> str:
    """Load an adapter of a Llama of two layers into another model, or from changed files."""
    model = shake(put(kind, **settings))
    with folder(model) as path, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        change(path)
        PeftModel.from_pretrained(base, path)
    return (
        "accepted, with a warning"
        if any("adapter keys" in str(each.message) for each in said)
        else "accepted in silence"
    )


def change_tensors(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "adapter_model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return apply


def change_settings(**settings: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        file = path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return apply


def _swap(tensors: dict[str, Tensor]) -> None:
    first, second = [name for name in tensors if "up_proj" in name and "_A" in name]
    tensors[first], tensors[second] = tensors[second], tensors[first]


def a_deeper_base(kind: Kind) -> str:
    return _load(kind, llama(layers=3))


def a_shallower_base(kind: Kind) -> str:
    return _load(kind, llama(layers=1))


def a_base_with_other_weights(kind: Kind) -> str:
    return _load(kind, llama(seed=7))


def a_base_with_other_weights_by_transformers(kind: Kind) -> str:
    with folder(shake(put(kind))) as path:
        llama(seed=7).load_adapter(str(path))
    return "accepted in silence"


def a_file_without_some_tensors(kind: Kind) -> str:
    return _load(kind, llama(), change_tensors(lambda tensors: tensors.pop(next(iter(tensors)))))


def a_file_with_tensors_too_many(kind: Kind) -> str:
    return _load(kind, llama(), change_tensors(lambda tensors: tensors.update(strange=torch.ones(2))))


def a_file_whose_layers_were_exchanged(kind: Kind) -> str:
    return _load(kind, llama(), change_tensors(_swap))


def a_file_with_nan(kind: Kind) -> str:
    return _load(kind, llama(), change_tensors(lambda tensors: next(iter(tensors.values())).fill_(float("nan"))))


def another_rank_in_the_settings(kind: Kind) -> str:
    return _load(kind, llama(), change_settings(r=2))


def another_alpha_in_the_settings(kind: Kind) -> str:
    return _load(kind, llama(), change_settings(**{kind.alpha: 64.0}))


def a_setting_of_a_later_version(kind: Kind) -> str:
    return _load(kind, llama(), change_settings(later=1))


def a_whole_module_that_is_missing(kind: Kind) -> str:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors["base_model.model.lm_head.weight"]

    return _load(kind, llama(), change_tensors(drop), modules_to_save=["lm_head"])


HABITS: list[tuple[str, Habit]] = [
    ("a deeper base", a_deeper_base),
    ("a shallower base", a_shallower_base),
    ("a base with other weights", a_base_with_other_weights),
    ("the same by `load_adapter` of transformers", a_base_with_other_weights_by_transformers),
    ("tensors missing in the file", a_file_without_some_tensors),
    ("tensors too many", a_file_with_tensors_too_many),
    ("two layers' tensors exchanged", a_file_whose_layers_were_exchanged),
    ("NaN in the file", a_file_with_nan),
    ("another rank in the settings", another_rank_in_the_settings),
    ("another alpha in the settings", another_alpha_in_the_settings),
    ("a setting of a later version", a_setting_of_a_later_version),
    ("no weights for `modules_to_save`", a_whole_module_that_is_missing),
]
