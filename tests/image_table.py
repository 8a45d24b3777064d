"""Whether each architecture of image classifiers is read, trained and written as its own library does it, or refused.

The command is that of `tests/architecture_table.py`.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import AutoImageProcessor, AutoModelForImageClassification

from expunge.adapters.bounded import Bounded
from expunge.adapters.full import Full
from expunge.core.question import HiddenStates, Scores
from expunge.core.request import Request
from expunge.data.images import ImageRecord, Picture, encode_for
from expunge.errors import DataRefused, ModelRefused
from expunge.methods.finetune import Finetune
from expunge.models.open import open_network
from expunge.models.vision import ImageClassifier
from expunge.objectives.ascent import Ascent
from expunge.objectives.retain_nll import RetainNLL
from tests.architecture_rows import Row, assert_close, assert_gradients, spread
from tests.families import EVERY_STEP
from tests.image_architectures import CLASSES, IMAGE_KINDS, IMAGE_SITUATIONS, SIDE, build_image, processor_of

IMAGE_HEAD = """## Image classifiers

Every image classifier of transformers {version}, built and asked in the same way by the same command. Of each row it
was asserted: pictures of three shapes, made ready and read together here, are scored as by the model that is called on
what its own processor makes of one picture at a time (to 1e-4), with the library's own loss where it has one and the
same gradients; a class token's hidden states are the library's; what was forgotten with the default adapter, or in all
weights where that finds no layers, and saved, answers in plain transformers as it did in memory. `NAME:SECOND` is
another classifier of the same architecture; `NAME+SETTING` has settings that stand in `tests/image_architectures.py`.

**{total} rows, {read} read, {refused} refused, {unbuilt} not built, {wrong} wrong.**

| architecture | read | trained with | note |
|---|---|---|---|
"""
SIZES = ((40, 40), (33, 61), (52, 30))
"""Heights and widths of the pictures, in turn."""
PICTURES = 7


def image_names() -> list[str]:
    """All that is tried."""
    return [*IMAGE_KINDS, *IMAGE_SITUATIONS]


def make_image(name: str) -> nn.Module:
    """A tiny classifier whose weights are far from their start, and whose batch norms have seen other pictures."""
    module = spread(build_image(name)).float()
    norms = [part for part in module.modules() if getattr(part, "running_mean", None) is not None]
    if norms:
        momentum, draw = norms[0].momentum, torch.Generator().manual_seed(2)
        for part in norms:
            part.momentum = 1.0  # what they keep is what they saw last
            part.weight.data = torch.rand(part.weight.shape, generator=draw) + 0.5
            part.bias.data = torch.randn(part.bias.shape, generator=draw) / 4
        with torch.no_grad():
            seen = interpolate(torch.randn(32, 3, 5, 5, generator=draw), side_of(module))  # coarse, as the pictures are
            module.train()(pixel_values=seen)
            size = float(scores_in(module.eval()(pixel_values=seen)).std())
        for part in norms:
            part.momentum = momentum
        for part in module.modules():
            if isinstance(part, nn.Linear) and part.out_features == CLASSES:
                part.weight.data /= max(1.0, size)  # else the losses of some are beyond what a run bears
    return module.eval().requires_grad_(False)


def side_of(module: Any) -> int:
    """Height and width of the pictures that it reads."""
    size = getattr(getattr(module.config, "vision_config", module.config), "image_size", SIDE)
    return int(size if isinstance(size, int) else size[0])


def photographs(classes: Sequence[str]) -> list[ImageRecord]:
    """Noise of three shapes, each with a class by lot."""
    draw = np.random.default_rng(0)
    made = []
    for k in range(PICTURES):
        coarse = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)  # fine noise would all be grey, made smaller
        image = Image.fromarray(coarse).resize(SIZES[k % 3][::-1])
        made.append(ImageRecord(str(k), k, image, classes[int(draw.integers(len(classes)))]))
    return made


def check_image(name: str) -> Row:
    """One architecture's row, after all that must hold of it was asserted."""
    try:
        plain = make_image(name)
    except ImportError as error:
        return Row(name, note=f"could not be built tiny: {' '.join(str(error).split()[:6])} ...")
    with tempfile.TemporaryDirectory() as folder:
        try:
            write(plain, name, Path(folder))
            network = open_network(folder)
            assert isinstance(network, ImageClassifier)
            shots = photographs(list(network.classes))
            pictures = encode_for(shots, network, Path(folder))
        except (ModelRefused, DataRefused) as refusal:
            why = str(refusal).replace(folder, "it")
            return Row(name, note=f"refused: {why}" if "\n" not in why else f"WRONG: {why!r}", wrong="\n" in why)
    given = [network.processor([shot.image.convert(mode_of(network))], return_tensors="pt") for shot in shots]
    labels = torch.tensor([picture.label for picture in pictures])
    with torch.inference_mode():
        check_scores(plain, network, given, pictures, labels)
        check_hidden_states(plain, network, given, pictures)
    check_image_gradients(plain, network, given, pictures, labels)
    adapter = check_image_forgetting(network, shots, pictures)
    return Row(name, "together", adapter)


def mode_of(network: ImageClassifier) -> str:
    """Pillow's name of the colours that the model reads."""
    return "L" if network.channels == 1 else "RGB"


def write(plain: Any, name: str, folder: Path) -> None:
    """The model's folder as the library writes it."""
    plain.save_pretrained(folder)
    processor_of(name, side_of(plain), getattr(plain.config, "num_channels", 3)).save_pretrained(folder)


def scores_alone(module: nn.Module, given: Sequence[Any]) -> Tensor:
    """The library's own scores of one picture at a time."""
    return torch.cat([scores_in(module(**dict(one))) for one in given])


def scores_in(said: Any) -> Tensor:
    """Where an architecture puts its class scores."""
    scores: Tensor = said.logits if "logits" in said else said.last_hidden_state
    return scores


def check_scores(
    plain: nn.Module, network: ImageClassifier, given: Sequence[Any], pictures: Sequence[Picture], labels: Tensor
) -> None:
    """Together, each picture's scores are those of the picture alone; no two answers to one differ; the loss is the
    library's own."""
    theirs = scores_alone(plain, given)
    assert torch.equal(scores_alone(plain, given), theirs), "two answers to one picture differ: it should be refused"
    assert float(theirs.std(0).max()) > 1e-3, "all pictures are scored alike, so nothing is tested"
    said = network.ask(Scores(), pictures)
    assert_close(said.logits, theirs, "read together, scores")
    assert said.labels.tolist() == labels.tolist()
    if "labels" in inspect.signature(plain.forward).parameters:
        own = [plain(**dict(one), labels=labels[k : k + 1]).loss for k, one in enumerate(given)]
        assert_close(said.nll(), torch.stack(own).mean(), "the loss and the library's own")


def check_hidden_states(
    plain: nn.Module, network: ImageClassifier, given: Sequence[Any], pictures: Sequence[Picture]
) -> None:
    """The class token's state after a block is the library's own, where it is answered."""
    for layer in (0, 1):
        try:
            ours = network.ask(HiddenStates(layer), pictures).states
        except ModelRefused:
            return
        every = [plain(**dict(one), output_hidden_states=True).hidden_states for one in given]
        assert_close(ours, torch.stack([states[layer + 1][0, 0] for states in every]), "the class token's states")


def check_image_gradients(
    plain: nn.Module, network: ImageClassifier, given: Sequence[Any], pictures: Sequence[Picture], labels: Tensor
) -> None:
    """Of the mean loss, as of the pictures one by one, there and here."""
    for module in (plain, network.module):
        module.requires_grad_(True)
    for k, one in enumerate(given):
        for part in plain.modules():
            if hasattr(part, "attention_bias_cache"):  # LeViT's, of a pass before
                part.attention_bias_cache = {}
        # Each beside itself: torch's own gradient of a batch norm is wrong of one picture in some memory formats.
        twice = {name: torch.cat([value, value]) for name, value in one.items()}
        (cross_entropy(scores_in(plain(**twice))[:1], labels[k : k + 1]) / len(given)).backward()
    network.ask(Scores(), pictures).nll().backward()
    assert_gradients(network.module, plain)
    network.module.zero_grad()
    for picture in pictures:
        (network.ask(Scores(), [picture]).nll() / len(pictures)).backward()
    assert_gradients(network.module, plain)
    for module in (plain, network.module):
        module.zero_grad()
        module.requires_grad_(False)


def check_image_forgetting(network: ImageClassifier, shots: Sequence[ImageRecord], pictures: Sequence[Picture]) -> str:
    """What a method returns answers, once saved, in the plain library as it did in memory. The adapter's name."""
    request = Request(forget=tuple(pictures[:3]), retain=tuple(pictures[3:]))
    wanted = Finetune(objective=Ascent() + RetainNLL(), steps=2, learning_rate=3e-4, stop=EVERY_STEP)
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    adapter: Bounded | Full = Bounded()
    try:
        changed = replace(wanted, adapter=adapter)(network, request)
    except ModelRefused:
        adapter = Full()
        changed = replace(wanted, adapter=adapter)(network, request)
    said, before = (each.ask(Scores(), pictures).logits for each in (changed, network))
    assert not torch.allclose(said, before, atol=1e-4), "forgetting changed nothing"
    after = dict(changed.plain().module.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in buffers.items()), "statistics of a batch were taken"
    with tempfile.TemporaryDirectory() as folder:
        changed.plain().save(Path(folder))
        loaded, info = AutoModelForImageClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert type(loaded) is type(network.module), f"it was loaded as a {type(loaded).__name__}"
    assert not info["missing_keys"], f"saved without {sorted(info['missing_keys'])[:2]}"
    with torch.inference_mode():
        made = [processor([shot.image.convert(mode_of(network))], return_tensors="pt") for shot in shots]
        assert_close(said, scores_alone(loaded.eval(), made), "saved and loaded, scores", 2e-4)
    return type(adapter).__name__
