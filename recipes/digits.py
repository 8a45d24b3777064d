"""A small vision transformer trained on scikit-learn's digits, with a class and without it: the vision side of studies.

python recipes/digits.py OUT [SEED]        writes OUT/original and OUT/retrained (transformers folders)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from expunge import Finetune, Full, LogProbabilities, Network, Request, Stop
from expunge.core.model import network_of
from expunge.data.images import Picture
from expunge.models.vision import ImageClassifier
from expunge.objectives.retain_nll import RetainNLL

FORGOTTEN = 8
EPOCHS, BATCH = 40, 64
CLASSES: dict[str, Any] = {"num_labels": 10}
"""A setting that transformers takes and does not declare."""


@dataclass(frozen=True)
class Digits:
    """Pictures of the training and test part: 8 by 8 pixels, scaled to [-1, 1]."""

    train: tuple[Picture, ...]
    test: tuple[Picture, ...]

    @staticmethod
    def load() -> Digits:
        """1,437 training and 360 test pictures, a fixed stratified split."""
        data = load_digits()
        pixels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
        indices = range(len(data.target))
        parts = train_test_split(list(indices), test_size=0.2, random_state=0, stratify=data.target)
        made = [tuple(Picture(f"digit-{k}", pixels[k], int(data.target[k]), f"{k}") for k in part) for part in parts]
        return Digits(*made)


def blank(seed: int) -> Network:
    """An untrained transformer of 136,138 parameters."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=8,
        patch_size=2,
        num_channels=1,
        **CLASSES,
    )
    return ImageClassifier.of(ViTForImageClassification(config), processor())


def processor() -> object:
    """Scales grey images of 8 by 8 to [-1, 1]."""
    return ViTImageProcessorPil(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5])


def trained(pictures: tuple[Picture, ...], seed: int, epochs: int = EPOCHS) -> Network:
    """The transformer after training on `pictures` (about 97 % on the test part; half a minute on one thread)."""
    steps = epochs * len(pictures) // BATCH
    method = Finetune(
        objective=RetainNLL(),
        adapter=Full(),
        learning_rate=2e-3,
        steps=steps,
        batch=1,
        retain_batch=BATCH,
        warmup=steps // 10,
        schedule="cosine",
        weight_decay=0.05,
        stop=Stop(level=None, max_retain_increase=None, every=steps),
        seed=seed,
        norms=False,
    )
    return network_of(method(blank(seed), Request(forget=pictures[:1], retain=pictures[1:])).plain(), "digits.trained")


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, seed = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    digits = Digits.load()
    for name, part in {
        "original": digits.train,
        "retrained": tuple(p for p in digits.train if p.label != FORGOTTEN),
    }.items():
        network = trained(part, seed)
        network.save(out / name)
        said = network.ask(LogProbabilities(), digits.test)
        print(f"{name}: test accuracy {said.right.double().mean():.4f}")
