"""Damaged adapters and other bases: what is loaded all the same, and what it then answers.

python -m tests.fuzz_adapters --count 3000            a table, printed
python -m tests.fuzz_adapters --count 3000 --write    and written into docs/peft.md

Each case saves an adapter, makes one random change to its files or its base, and loads it. An adapter that was accepted
must answer as the one that was saved; of a base in another precision, nearly so.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge import load_adapter
from expunge.errors import Refusal
from tests.peft_habits.kinds import BOUNDED, LORA, Kind, answer, llama, near, put, shake
from tests.peft_habits.table import PAGE, insert

MARKS = ("<!-- fuzz -->\n", "<!-- end of fuzz -->\n")
SEED = 0
Load = Callable[[nn.Module, Path], nn.Module]
RIGHT, WRONG, REFUSED, ESCAPED = "accepted, right", "accepted, other answers", "refused", "another error"


def by_us(base: nn.Module, path: Path) -> nn.Module:
    return load_adapter(base, path)


def by_peft(base: nn.Module, path: Path) -> nn.Module:
    loaded: nn.Module = PeftModel.from_pretrained(base, str(path))
    return loaded


WAYS: dict[str, tuple[Kind, Load]] = {
    "`Bounded`, `load_adapter`": (BOUNDED, by_us),
    "`Bounded`, `PeftModel.from_pretrained`": (BOUNDED, by_peft),
    "LoRA, `PeftModel.from_pretrained`": (LORA, by_peft),
}


@dataclass(frozen=True)
class Saved:
    """An adapter's folder, another of the same form, and what the first answers on its base."""

    folder: Path
    other: Path
    right: Tensor


def save(kind: Kind, settings: dict[str, Any], place: Path) -> Saved:
    model = shake(put(kind, **settings))
    model.save_pretrained(place / "one")
    shake(put(kind, **settings), 3).save_pretrained(place / "other")
    return Saved(place / "one", place / "other", answer(model))


FORMS: tuple[dict[str, Any], ...] = ({}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"up_proj": 2}})


# Changes to the tensors


def change_tensors(draw: random.Random, saved: Saved, path: Path) -> None:
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    name, second = draw.sample(sorted(tensors), 2)
    tensor = tensors[name].clone()
    how = draw.choice(sorted(TENSOR_CHANGES))
    TENSOR_CHANGES[how](draw, tensors, name, second, tensor)
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata={"format": "pt"})


def _rename(draw: random.Random, tensors: dict[str, Tensor], name: str, second: str, tensor: Tensor) -> None:
    del tensors[name]
    layer = draw.choice([".0.", ".1.", ".2.", ".999.", ".-1."])
    tensors[name.replace(".0.", layer) if ".0." in name else name.replace(".1.", layer)] = tensor


def _exchange(draw: random.Random, tensors: dict[str, Tensor], name: str, second: str, tensor: Tensor) -> None:
    same = [key for key in tensors if tensors[key].shape == tensor.shape and key != name]
    other = draw.choice(same or [second])
    tensors[name], tensors[other] = tensors[other].clone(), tensor


def _one_entry(draw: random.Random, tensors: dict[str, Tensor], name: str, second: str, tensor: Tensor) -> None:
    tensor.view(-1)[draw.randrange(tensor.numel())] += draw.choice([1e-3, 1.0, float("nan"), float("inf"), 1e30])
    tensors[name] = tensor


def _drop(draw: random.Random, tensors: dict[str, Tensor], name: str, second: str, tensor: Tensor) -> None:
    for key in draw.sample(sorted(tensors), draw.randint(1, len(tensors) - 1)):
        del tensors[key]


TENSOR_CHANGES: dict[str, Callable[[random.Random, dict[str, Tensor], str, str, Tensor], None]] = {
    "drop": _drop,
    "rename": _rename,
    "exchange": _exchange,
    "one entry": _one_entry,
    "zero": lambda draw, tensors, name, second, tensor: tensors.update({name: torch.zeros_like(tensor)}),
    "transpose": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor.T}),
    "shorten": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor[:1]}),
    "flatten": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor.flatten()}),
    "double": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor * 2}),
    "integers": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor.int()}),
    "half": lambda draw, tensors, name, second, tensor: tensors.update({name: tensor.half()}),
    "add": lambda draw, tensors, name, second, tensor: tensors.update({f"{name}.more": tensor}),
    "adapter's name": lambda draw, tensors, name, second, tensor: tensors.update({f"{name}.default": tensor}),
    "base's own": lambda draw, tensors, name, second, tensor: tensors.update(
        {"base_model.model.model.layers.0.self_attn.q_proj.weight": torch.zeros(16, 16)}
    ),
    "under a base layer": lambda draw, tensors, name, second, tensor: tensors.update(
        {"base_model.model.model.layers.0.mlp.up_proj.base_layer.weight": torch.zeros(24, 16)}
    ),
    "empty": lambda draw, tensors, name, second, tensor: tensors.clear(),
}


# Changes to bytes and settings


def change_bytes(draw: random.Random, saved: Saved, path: Path) -> None:
    file = path / draw.choice(["adapter_model.safetensors", "adapter_model.safetensors", "adapter_config.json"])
    data = bytearray(file.read_bytes())
    how = draw.randrange(6)
    at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(len(data), 1500))
    if how == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == 1:
        data = data[:at]
    elif how == 2:
        data[at:at] = draw.randbytes(draw.randint(1, 64))
    elif how == 3:
        del data[at : at + draw.randint(1, 64)]
    elif how == 4:
        data[at : at + 8] = draw.randbytes(8)
    else:
        data = bytearray((saved.other / file.name).read_bytes())
    file.write_bytes(data)


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 64, 65537, 10**30, 0.5, 1e-30, 1e308, "", "sine", "tanh", "linear"),
    *("all-linear", ".*", "(", "up_proj", "lm_head", "x\ny", "\u202e", "A" * 5000, [], [""], ["up_proj"], ["lm_head"]),
    *([0], [7], [None], {}, {"up_proj": 2}, {"(": 1}, {"up_proj": "2"}, [[[]]], {"a": {"b": []}}, "CAUSAL_LM", "LORA"),
    *("SEQ_CLS", "SEQ_2_SEQ_LM", "IA3", "BOUNDED", "float32", ["model.layers.0.mlp.up_proj"], "gaussian"),
    *(10, 10.0, 8, 4),
)
STRANGE = ["use_dora", "lora_alpha", "bias", "later", "runtime_config", "auto_mapping"]
"""Settings that a bounded adapter has not, and one that peft writes."""
TELLING = ["digest", "base", "peft_type", "r", "alpha", "omega", "map", "target_modules"]


def change_settings(draw: random.Random, saved: Saved, path: Path) -> None:
    file = path / "adapter_config.json"
    settings = json.loads(file.read_text())
    field = draw.choice(sorted(settings))
    how = draw.random()
    if how < 0.1:
        del settings[field]
    elif how < 0.2:
        settings[draw.choice(STRANGE)] = draw.choice(VALUES)
    elif how < 0.25:
        settings = draw.choice(VALUES)
    elif how < 0.5 and field in json.loads((saved.other / file.name).read_text()):
        settings[draw.choice(TELLING)] = draw.choice(VALUES)
    else:
        settings[field] = draw.choice(VALUES)
    file.write_text(json.dumps(settings))


# Other bases


def _of_one_other_layer(draw: random.Random) -> nn.Module:
    base, other = llama(), llama(seed=7)
    name = draw.choice([name for name, _ in base.named_parameters() if "norm" not in name])
    base.get_parameter(name).data = other.get_parameter(name).data
    return base


def _reversed(draw: random.Random) -> nn.Module:
    base = llama()
    base.model.layers = nn.ModuleList(list(base.model.layers)[::-1])
    return base


def _deeper_by_its_own_layer(draw: random.Random) -> nn.Module:
    base = llama()
    base.model.layers.insert(draw.randint(0, 2), copy.deepcopy(base.model.layers[draw.randint(0, 1)]))
    for number, layer in enumerate(base.model.layers):
        layer.self_attn.layer_idx = number
    base.config.num_hidden_layers = 3
    return base


BASES: dict[str, Callable[[random.Random], nn.Module]] = {
    "deeper": lambda draw: llama(layers=draw.choice([3, 4])),
    "deeper by a layer of its own": _deeper_by_its_own_layer,
    "shallower": lambda draw: llama(layers=1),
    "other weights": lambda draw: llama(seed=draw.randint(1, 10**6)),
    "one other matrix": _of_one_other_layer,
    "blocks in another order": _reversed,
    "scaled": lambda draw: _scale(llama(), draw.choice([0.9, 0.99, 1.01, 2.0])),
    "rounded to bfloat16": lambda draw: llama().bfloat16(),
    "rounded to float16": lambda draw: llama().half(),
    "in float64": lambda draw: llama().double(),
}


def _scale(base: nn.Module, by: float) -> nn.Module:
    for parameter in base.parameters():
        parameter.data *= by
    return base


def attempt(load: Load, base: nn.Module, path: Path, saved: Saved) -> str:
    """What comes of loading: refused, accepted and right, accepted with other answers, or another error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load(base, path).eval()
        except Refusal as refusal:
            return REFUSED if "\n" not in str(refusal) and len(str(refusal)) < 1000 else "refused in many lines"
        except Exception:  # whatever a library raises is what is counted
            return ESCAPED
        exact = next(base.parameters()).dtype == torch.float32
        return RIGHT if near(answer(loaded).float(), saved.right, 1e-5 if exact else 0.05) else WRONG


FILES = {"tensors": change_tensors, "bytes": change_bytes, "settings": change_settings}
CHANGES = (*FILES, "base")


def run(ways: dict[str, tuple[Kind, Load]], count: int, seed: int = SEED) -> dict[str, Counter[tuple[str, str]]]:
    """For each way of loading, how often each outcome came of each kind of change."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for way, (kind, load) in ways.items():
        found[way] = Counter()
        with tempfile.TemporaryDirectory() as scratch:
            saved = [save(kind, form, Path(scratch, str(number))) for number, form in enumerate(FORMS)]
            for number in range(count):
                draw = random.Random(f"{seed} {number}")
                change, one = CHANGES[number % len(CHANGES)], saved[draw.randrange(len(saved))]
                path = Path(scratch, "changed")
                shutil.rmtree(path, ignore_errors=True)
                shutil.copytree(one.folder, path)
                base: nn.Module = llama()
                if change == "base":
                    base = BASES[draw.choice(sorted(BASES))](draw)
                else:
                    FILES[change](draw, one, path)
                found[way][change, attempt(load, base, path, one)] += 1
    return found


def table(found: dict[str, Counter[tuple[str, str]]]) -> str:
    """The counts as rows."""
    lines = ["| loaded | changed | cases | refused | accepted, right | accepted, other answers | another error |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for way, counts in found.items():
        for change in CHANGES:
            cells = [counts[change, outcome] for outcome in (REFUSED, RIGHT, WRONG, ESCAPED)]
            total = sum(number for (kind, _), number in counts.items() if kind == change)
            lines.append(f"| {way} | {change} | {total} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    rows = table(run(WAYS, chosen.count))
    print(rows)
    if chosen.write:
        PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), rows, MARKS), encoding="utf-8")
