"""Image classifiers, through transformers' `AutoModelForImageClassification`: a row for each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.core.model import Network, answers
from expunge.core.predictions import Hidden, Predictions, weights_of
from expunge.core.question import HiddenStates, Scores
from expunge.errors import EnvironmentRefused, ModelRefused
from expunge.internals.examples import Pictured
from expunge.models._family import Family
from expunge.models.hidden import UpToBlock
from expunge.models.picture_probe import refuse_misfit, scores_in
from expunge.models.prefix_tree import Layout
from expunge.models.source import Source, config_of, config_text, load_module, refuse_adapted
from expunge.models.stored import Stored, stored_of, write_module
from expunge.runtime.atomic_files import open_to_readers

if TYPE_CHECKING:
    from expunge.core.model import Batch

AT_ONCE = 128
"""Most images in one forward pass."""


@dataclass(frozen=True)
class ImageClassifier(Network):
    """A classifier (ViT, DeiT, ResNet, ...) with its image processor.

    The module stays in evaluation mode, in training too: BatchNorm's running statistics do not change, so what a ResNet
    learns or forgets is in its weights alone, and an image's answer does not depend on the rest of its batch.
    """

    family: ClassVar[str] = "vision"
    module: Any
    """A transformers model; it is called with `pixel_values` and gives `logits`."""
    processor: Any = field(repr=False)
    stored: Stored | None = field(repr=False, default=None)
    """How its file holds the weights, which it is written in as well; None: as they are in memory."""

    @staticmethod
    def load(source: Source, device: str = "cpu", storage_device: str | None = None) -> ImageClassifier:
        """Weights in float32 for a CPU, else in the precision of the file or of `source.dtype`; never remote code or
        pickle.

        They are put on `storage_device` where one is given, else on `device`.
        """
        from transformers import AutoModelForImageClassification

        _refuse_other_tasks(source)
        processor = load_processor(source)
        module = load_module(
            source, AutoModelForImageClassification, torch.float32 if device == "cpu" else source.dtype or "auto"
        )
        network = ImageClassifier.of(module.to(storage_device or device), processor)
        network = replace(network, stored=stored_of(source, module.config))
        refuse_misfit(source.name, network.module, processor, network.channels, len(network.classes))
        return network

    @staticmethod
    def of(module: Any, processor: Any) -> ImageClassifier:
        """From a module and a processor in memory."""
        return ImageClassifier(module.eval(), processor)

    @property
    def classes(self) -> dict[str, int]:
        """The number of each class by its name; a name that occurs twice (ImageNet's cranes) gets its number added."""
        config = self.module.config
        labels = config.id2label or {number: f"LABEL_{number}" for number in range(config.num_labels)}  # PVT has none
        names = {int(number): str(name) for number, name in labels.items()}
        count = Counter(names.values())
        return {name if count[name] == 1 else f"{name} ({number})": number for number, name in sorted(names.items())}

    @property
    def channels(self) -> int:
        """Colour channels that the model reads: 3, or 1 for grey."""
        config = self.module.config
        return int(getattr(getattr(config, "vision_config", config), "num_channels", 3))

    @answers(Scores)
    def _scores(self, _question: Scores, batch: Sequence[Pictured]) -> Predictions:
        logits = self._read(self.module, batch)
        return Predictions(*_rows(batch, logits.device), weights=weights_of(batch), states=logits)

    @answers(HiddenStates)
    def _hidden_states(self, question: HiddenStates, batch: Sequence[Pictured]) -> Hidden:
        """Hidden states of the class token."""
        below = UpToBlock(self.module, question)
        tokens = [name.split(".") for name, _ in self.module.named_parameters() if name.endswith("cls_token")]
        if not any(tokens) or any(word.isdigit() for name in tokens for word in name):
            lacks = "its class token in one stage only" if tokens else "no class token"
            raise ModelRefused(
                f"{type(self.module).__name__} has {lacks}, so an image has no single hidden state. "
                f"Use an objective without hidden states."
            )
        states = self._read(below, batch)[:, 0]
        return Hidden(*_rows(batch, states.device), weights=weights_of(batch), states=states)

    def _read(self, module: nn.Module, batch: Sequence[Pictured]) -> Tensor:
        """Output of the module, or of its part up to a block, for the images.

        Never in inference mode: what an architecture keeps of one pass for the next, such as BEiT's table of relative
        positions, could then not be used in training.
        """
        weights = next(self.module.parameters())
        learns = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns), _fresh_biases(self.module):
            pixels = torch.stack([example.pixels for example in batch]).to(weights.device, weights.dtype)
            if learns and len(pixels) == 1 and any(isinstance(part, _BatchNorm) for part in self.module.modules()):
                # torch's gradient of a batch norm in evaluation mode is wrong on a CPU where one picture comes in one
                # memory format and its gradient in the other; of two it is right.
                return scores_in(module(pixel_values=torch.cat([pixels, pixels])))[:1]
            return scores_in(module(pixel_values=pixels))

    def batches(self, examples: Batch) -> Iterator[list[int]]:
        for start in range(0, len(examples), AT_ONCE):
            yield list(range(start, min(start + AT_ONCE, len(examples))))

    def layout(self, batch: Batch, device: str) -> Layout:
        """How one forward pass would read a batch: side by side, whatever the kind of device."""
        return Layout(len(batch), 1)

    def settings(self) -> str:
        return config_text(self.module.config)

    def save(self, folder: Path) -> None:
        write_module(refuse_adapted(self.module), self.stored, folder)
        self.processor.save_pretrained(folder)
        for path in folder.iterdir():
            open_to_readers(path)  # safetensors writes a temporary file that only its owner may read


def load_processor(source: Source) -> Any:
    """The model's own image processor, on Pillow: torchvision resizes slightly differently, and need not be
    installed."""
    try:
        import PIL  # noqa: F401  an extra: only images need it
        from transformers import AutoImageProcessor
    except ImportError as error:
        raise EnvironmentRefused("Image models need Pillow: pip install 'expunge[vision]'.") from error
    try:
        return AutoImageProcessor.from_pretrained(**source.arguments, backend="pil")
    except Exception as error:  # each processor class fails in its own way on a damaged file
        if "optional dependencies: torchvision" in str(error):
            raise EnvironmentRefused(
                f"{source.name}: its image processor is torchvision's alone: pip install torchvision."
            ) from error
        raise ModelRefused(
            f"{source.name}: its image processor could not be loaded ({type(error).__name__}). "
            f"A preprocessor_config.json must be beside the weights."
        ) from error


@contextmanager
def _fresh_biases(module: nn.Module) -> Iterator[None]:
    """Without the attention biases that LeViT keeps from pass to pass in evaluation mode: they would be those of before
    a step, without gradients, and in the way of a copy."""
    keepers: list[Any] = [part for part in module.modules() if hasattr(part, "attention_bias_cache")]
    for part in keepers:
        part.attention_bias_cache = {}
    try:
        yield
    finally:
        for part in keepers:
            part.attention_bias_cache = {}


def _rows(batch: Sequence[Pictured], device: torch.device) -> tuple[Tensor, Tensor, int, None]:
    """The first fields of `Rows`: labels, owner of each row, number of examples, and no share."""
    labels = torch.tensor([example.label for example in batch], device=device)
    return labels, torch.arange(len(batch), device=device), len(batch), None


def _refuse_other_tasks(source: Source) -> None:
    """Refuse models that are not classifiers: transformers would add a random head and only warn."""
    config = config_of(source)
    architecture = (config.architectures or ["ForImageClassification"])[0]
    if "ForImageClassification" not in architecture:
        raise ModelRefused(
            f"{source.name}: is a {architecture}, which has no image classes. Give a ...ForImageClassification."
        )
    if config.problem_type not in (None, "single_label_classification") or config.num_labels < 2:
        raise ModelRefused(f"{source.name}: does not give each image one class out of several. Give one that does.")


@dataclass(frozen=True)
class Vision(Family):
    """Image classifiers."""

    name: ClassVar[str] = "vision"
    records: ClassVar[str] = "images"
    unit: ClassVar[str] = "images"
    kind: ClassVar[str] = "an image classifier"
    defaults: ClassVar[tuple[str, str]] = ("AbsentClass", "AbsentClass")
    endings: ClassVar[tuple[str, ...]] = ("ForImageClassification",)

    def has(self, config: Any) -> bool:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

        named = list(config.architectures or [])
        if named:
            return any(self.endings[0] in name for name in named)  # some continue: ...ForImageClassificationWithTeacher
        return config.model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    def open(self, source: Source, device: str, storage_device: str | None) -> ImageClassifier:
        return ImageClassifier.load(source, device, storage_device)


FAMILY = Vision()
