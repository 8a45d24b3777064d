"""Whether an image classifier may be read as pictures side by side: tried when it is loaded, on two small pictures.

What a picture is scored alone is right: it is what transformers answers. A classifier that scores it otherwise beside
another, that draws its scores at random, or that reads more than a picture's pixels, is refused.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from expunge.errors import ModelRefused
from expunge.models.probe import FAILS
from expunge.runtime.precision import full_precision
from expunge.runtime.processes import barrier

TOLERANCE = {"cpu": 1e-3, "cuda": 5e-2}
"""How far scores of one picture may differ from pass to pass, by device: convolutions on CUDA round to 10 bits."""
FIX = "Use the model's own preprocessor_config.json."


def scores_in(said: Any) -> Tensor:
    """The class scores in what a classifier returns; PP-LCNet names them its last states."""
    scores = getattr(said, "logits", None)
    made: Tensor = said.last_hidden_state if scores is None else scores
    return made


def refuse_misfit(name: str, module: Any, processor: Any, channels: int, classes: int) -> None:
    """Raise `ModelRefused` where the module does not score what its processor makes of pictures, one as beside
    another, in so many classes; `name` is the model as the user gave it."""
    try:
        given = processor(_pictures(channels), return_tensors="pt")
    except FAILS as error:
        raise ModelRefused(f"{name}: its image processor fails on a blank image. {FIX}") from error
    reads = inspect.signature(module.forward).parameters
    more = sorted({"input_ids", *given} & set(reads) - {"pixel_values"})
    if more:
        raise ModelRefused(
            f"{name}: {type(module).__name__} reads {' and '.join(more)}, not the pixels of a picture alone. "
            f"Give one that does."
        )
    pixels = given["pixel_values"]
    weights = next(module.parameters())
    try:
        with torch.no_grad(), full_precision():  # see ImageClassifier._read
            pixels = pixels.to(weights.device, weights.dtype)
            together, again, *alone = (
                scores_in(module(pixel_values=some)).float() for some in (pixels, pixels, *pixels.split(1))
            )
    except torch.OutOfMemoryError:
        raise
    except FAILS as error:
        barrier()  # where another process is lost, it is not the picture that failed
        raise ModelRefused(
            f"{name}: its image processor makes {list(pixels.shape[1:])} of an image, which the model does not read. "
            f"{FIX}"
        ) from error
    if together.shape != (2, classes):
        raise ModelRefused(f"{name}: scores {together.shape[-1]} classes but names {classes}. Fix config.json.")
    if not _close(together, again):
        raise ModelRefused(f"{name}: draws its scores at random, so that no two are alike. Give one that does not.")
    if not _close(together, torch.cat(alone)):
        raise ModelRefused(f"{name}: scores a picture by what is read beside it. Give one that does not.")


def _pictures(channels: int) -> list[Any]:
    """A blank one, and one of three colours."""
    from PIL import Image

    blank = Image.new({1: "L"}.get(channels, "RGB"), (48, 32))
    other = blank.copy()
    other.paste(Image.new("RGB", (20, 20), (250, 40, 90)).convert(blank.mode), (4, 3))
    other.paste(Image.new("RGB", (16, 12), (10, 220, 60)).convert(blank.mode), (22, 15))
    return [blank, other]


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Whether class scores are the same but for rounding."""
    tolerance = TOLERANCE.get(ours.device.type, TOLERANCE["cuda"])
    return float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())
