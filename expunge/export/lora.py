"""The update of a finished run as a plain LoRA of peft, the nearest of a rank, and how far it is from the update."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from expunge.core.model import Network
from expunge.core.request import Example
from expunge.data import text
from expunge.errors import Refusal, UsageRefused
from expunge.events import Note, OnEvent, ignore_event
from expunge.export.logits import LogitError, compare_logits
from expunge.export.lora_card import lora_card
from expunge.export.runs import find_base, has_adapter, open_base, read_run
from expunge.export.updates import Cut, cut_adapter, cut_difference, linear_layers, list_names
from expunge.models.language import LanguageModel
from expunge.models.merging import SETTINGS, WEIGHTS, insert_adapter
from expunge.models.open import open_network
from expunge.models.source import locate, read_json
from expunge.models.stored import Stored
from expunge.report.card import CARD
from expunge.run.checks import check_out
from expunge.runtime.atomic_files import check_room, lock, open_to_readers, whole_folder, write_manifest, write_text

NEUTRAL = Path(text.__file__).parent / "neutral.jsonl"
"""Plain texts that come with the package."""
Asked = tuple[tuple[Example, ...], str]
"""Texts to compare class scores on, and what they are; or none, and why."""


@dataclass(frozen=True)
class LoraJob:
    """What to make of which run, and where."""

    run: Path
    rank: int
    out: Path
    base: str | None = None
    """Where the base lies, if not where the run found it."""
    texts: Path | None = None
    """Texts to compare class scores on; None: plain ones that come with the package."""
    line: str = ""
    """What was typed, for the card."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageRefused(f"--lora must be a rank of at least 1, such as 32. Got {self.rank}.")


@dataclass(frozen=True)
class Written:
    """A LoRA that was written, and how far it is from the update."""

    rank: int
    """At most what was asked for: no layer's update has more directions."""
    cut: Cut
    logits: LogitError | None
    """The forgotten model against base and LoRA; None where no texts could be asked."""
    base_logits: LogitError | None
    """The forgotten model against the base alone: what there was to reproduce."""
    on: str
    """The texts that both were asked."""

    def lines(self) -> list[str]:
        """The same in sentences."""
        worst, error = self.cut.worst
        said = [
            f"Error in weights: {self.cut.error:.2g} of the update's norm over {len(self.cut.layers)} layers; "
            f"{error:.2g} in the worst, {worst}"
        ]
        if self.cut.left_out:
            share = math.hypot(*self.cut.left_out.values())
            said.append(
                f"Left out, and counted as lost: {len(self.cut.left_out)} tensors that are in no linear layer of their "
                f"own ({list_names(self.cut.left_out)}), of norm {share:.3g}"
            )
        if self.logits is None or self.base_logits is None:
            return [*said, f"Error in logits: not measured, as {self.on}"]
        return [
            *said,
            f"Error in logits: {_words(self.logits)}, on {self.on} ({self.logits.rows:,} tokens)",
            f"The base without it, for comparison: {_words(self.base_logits)}",
        ]


def _words(error: LogitError) -> str:
    return f"mean {error.mean:.3g}, largest {error.largest:.3g}, KL {error.kl:.3g} nats a token"


def export_lora(job: LoraJob, on_event: OnEvent = ignore_event) -> Written:
    """Write the LoRA of a run, with its card and a manifest, to `job.out`, all of it or nothing."""
    check_out(job.out, str(job.run))
    report = read_run(job.run, on_event)
    place = job.base or find_base(job.run, report)
    on_event(Note(f"Loading {place} and {job.run / 'model'}"))
    base, stored = open_base(place, report)
    asked = _texts(job, base)
    forgotten = open_network(str(job.run / "model"))
    on_event(Note(f"Cutting the update to rank {job.rank}"))
    if has_adapter(job.run, report):
        cut = cut_adapter(base, job.run / "adapter", stored, job.rank)
    else:
        cut = cut_difference(base, forgotten, job.rank)
    check_room((part for factors in cut.layers.values() for part in (factors.a, factors.b)), job.out)
    with lock(job.out), whole_folder(job.out) as folder:
        write_lora(cut, base, place, folder)
        made = _compare(cut, (base, forgotten), folder, stored, asked)
        write_text(folder / CARD, lora_card(report, made.rank, job.rank, made.lines(), job.line, place))
        write_manifest(folder, base=report.original.fingerprint)
    return made


def write_lora(cut: Cut, base: Network, place: str, folder: Path) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` as peft does for a LoRA; alpha is the rank."""
    source, layers = locate(place), linear_layers(base.module)
    config = LoraConfig(
        r=cut.rank,
        lora_alpha=cut.rank,
        target_modules=targets(base.module, set(cut.layers)),
        fan_in_fan_out=any(isinstance(layers[name], Conv1D) for name in cut.layers),
        task_type="CAUSAL_LM" if isinstance(base, LanguageModel) else None,
        base_model_name_or_path=place if source.gguf else source.name,
        revision=source.revision,
        inference_mode=True,
    )
    tensors = {}
    for name, factors in cut.layers.items():
        wide = factors.widen(cut.rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = wide.a
        tensors[f"base_model.model.{name}.lora_B.weight"] = wide.b
    config.save_pretrained(str(folder))
    settings = read_json(folder / SETTINGS)  # in which peft leaves the names in any order
    settings["target_modules"] = sorted(settings["target_modules"])
    write_text(folder / SETTINGS, json.dumps(settings, indent=2, sort_keys=True))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    open_to_readers(folder / WEIGHTS)  # safetensors writes a temporary file that only its owner may read


def targets(module: Any, layers: set[str]) -> list[str]:
    """Endings of the layers' names, as servers expect them, where no other layer has one of them; else whole names."""
    endings = {name.rpartition(".")[2] for name in layers}
    alike = {name for name, _ in module.named_modules() if name.rpartition(".")[2] in endings}
    return sorted(endings if alike == layers else layers)


def _compare(cut: Cut, pair: tuple[Network, Network], folder: Path, stored: Stored, asked: Asked) -> Written:
    """What was written, read back by peft and put into the base, beside the forgotten model."""
    base, forgotten = pair
    adapted = insert_adapter(base.fork(), folder, stored)  # which refuses files that do not fit the base
    examples, on = asked
    if not examples:
        return Written(cut.rank, cut, None, None, on)
    without = compare_logits(forgotten, base, examples)  # first, as what is merged shares the base's storage
    served = base.fork(adapted.merge_and_unload(safe_merge=True).eval())
    return Written(cut.rank, cut, compare_logits(forgotten, served, examples), without, on)


def _texts(job: LoraJob, network: Network) -> Asked:
    """The texts of a job, as its network reads them."""
    if not isinstance(network, LanguageModel):
        if job.texts:
            raise UsageRefused(f"--texts: {type(network.module).__name__} reads no texts. Leave it out.")
        return (), "an image classifier reads no texts"
    if job.texts:
        return text.encode_for(text.load(job.texts), network, job.texts), job.texts.name
    try:
        return text.encode_for(text.load(NEUTRAL), network, NEUTRAL), "plain texts that come with expunge"
    except Refusal as error:  # a model that reads short texts only, or whose vocabulary is another
        return (), f"the texts that come with expunge could not be asked: {error}"
