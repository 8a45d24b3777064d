"""What trying how a model may be read costs when it is opened: seconds of `open_model` with the trial and without.

python benchmarks_speed/probe.py --threads 1 --repeats 5 --write
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import transformers
from side_by_side import machine, race, settings, show, spread, table
from tokenizers import Tokenizer, models
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from expunge.demo.run import demo_model
from expunge.models.open import open_model
from expunge.models.probe import ANY_LENGTH, Reads

KNOWN = Reads(trees=ANY_LENGTH, rows=ANY_LENGTH, nodes=ANY_LENGTH)
TINY = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
)
SMALL = LlamaConfig(
    vocab_size=16_384, hidden_size=384, intermediate_size=1_024, num_hidden_layers=10, num_attention_heads=6
)
VIT = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, num_labels=1_000)


def main() -> None:
    asked = settings(__doc__)
    transformers.logging.disable_progress_bar()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_models(Path(folder)).items():
            contenders = {"with": lambda path=path: open_model(path), "without": without_trial(path)}
            rounds = min(asked.repeats, 3) if path.endswith(".gguf") else asked.repeats  # most of it is decompression
            seconds = race(contenders, rounds, warm=int(rounds == asked.repeats), clock=time.process_time)
            cost = [a - b for a, b in zip(seconds["with"], seconds["without"], strict=True)]
            rows.append([name, rounds, *map(spread, seconds.values()), spread(cost)])
    head = ["model", "rounds", "with the trial", "without", "the trial, round by round"]
    text = f"{machine()}; processor seconds\n\n{table(head, rows)}"
    show("probe", text, asked.write)


def write_models(folder: Path) -> dict[str, str]:
    """Where the models are, by what they are called in the table."""
    words = Tokenizer(models.WordLevel({f"w{k}": k for k in range(64)}, unk_token="w0"))
    made = {}
    for called, config in (("a tiny Llama", TINY), ("a random Llama", SMALL)):
        path = folder / called
        module = LlamaForCausalLM(config)
        module.save_pretrained(path)
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(path)
        made[f"{called}, {module.num_parameters() / 1e6:.2g} M numbers"] = str(path)
    module = ViTForImageClassification(VIT)
    module.save_pretrained(folder / "vit")
    ViTImageProcessorPil().save_pretrained(folder / "vit")
    made[f"a random ViT, {module.num_parameters() / 1e6:.2g} M numbers"] = str(folder / "vit")
    return made | {"the demo's SmolLM2, 135 M numbers, a GGUF file": demo_model()}


def without_trial(path: str) -> Callable[[], object]:
    """Opens the model as if it were known how it is read."""

    def run() -> None:
        with (
            patch("expunge.models.language.probe", lambda _network: KNOWN),
            patch("expunge.models.vision.refuse_misfit", lambda *_: None),
        ):
            open_model(path)

    return run


if __name__ == "__main__":
    main()
