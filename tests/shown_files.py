"""Makes what the commands of our pages name: tiny random models, files of records, and pictures.

The records have the shape that the README shows. Only those of the forget set have `options`, as only they need any.
"""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tests.benchmarks.made_up import tofu
from tests.conftest import save_model
from tests.graphs import NODES, links, network, write_graph, write_list

ROOT = Path(__file__).parent.parent
SHOWN = ("Mara Lind", "In Veldt.")
"""Whom the README's record is about, and where she lives."""
TOWNS = ("Veldt", "Ostrava", "Farrow", "Corvane")
LAST = {"forget": "Lind", "retain": "Holm", "holdout": "Marsh", "neighbours": "Brook"}
CLASSES = ("cat", "dog", "bird")
FIRST = ("Mara", "Nils", "Ada", "Ole")


def record() -> dict[str, Any]:
    """The record that the README shows."""
    (shown,) = re.findall(
        r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return dict(json.loads(shown))


def rows(kind: str) -> list[dict[str, Any]]:
    """Records of a set, in the README's words."""
    shown, made = record(), []
    for number, (first, town) in enumerate(zip(FIRST, TOWNS, strict=True)):
        named = {"question": str(shown["question"]).replace(SHOWN[0], f"{first} {LAST[kind]}"), "answer": f"In {town}."}
        made.append({**shown, "id": f"{kind}-{number}", **named})
    return made


def make_files(folder: Path) -> None:
    """All of it, in `folder`."""
    sets = {kind: rows(kind) for kind in LAST}
    sets["paraphrase"] = [{**row, "question": f"Tell me: {row['question']}"} for row in sets["forget"]]
    sets["corpus"] = [
        {**row, "id": f"{row['id']}-{street}", "question": f"{row['question'][:-1]} in street {street}?"}
        for street in range(60)
        for row in rows("neighbours")
    ]
    for kind, records in sets.items():
        text = "".join(f"{json.dumps(_options_for(kind, row))}\n" for row in records)
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")
    save_model(folder / "my-model")
    (folder / "llama-8b").symlink_to("my-model")
    tofu(folder / "tofu")
    _save_pictures(folder)
    _save_graph(folder)


def _options_for(kind: str, row: dict[str, Any]) -> dict[str, Any]:
    """The record with options that are wrong, in the forget set, and without any in another."""
    wrong = [option for option in row["options"] if option != row["answer"]]
    return {
        key: wrong if key == "options" else value for key, value in row.items() if kind == "forget" or key != "options"
    }


def _save_pictures(folder: Path) -> None:
    """Two tiny vision transformers, and pictures of their classes."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: k for k, name in enumerate(CLASSES)}}
    for model in ("my-vit", "my-vit-without-cats"):
        module = ViTForImageClassification(ViTConfig(**shape, **names, image_size=8, patch_size=4))
        module.save_pretrained(folder / model)
        ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder / model)
    random = np.random.default_rng(0)
    for place, name in product(("pictures", "photos/train", "photos/test"), CLASSES):
        (folder / place / name).mkdir(parents=True)
        for number in range(6):
            picture = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / place / name / f"{number}.png")


def _save_graph(folder: Path) -> None:
    """A graph, lists of its nodes and links, and an untrained network for either."""
    place = write_graph(folder / "my-graph")
    sets = {"forget": range(8), "holdout": range(8, 16), "retain": range(16, NODES)}
    for name, which in {**sets, "train": [*sets["forget"], *sets["retain"]]}.items():
        write_list(place / f"{name}.nodes", list(which))
    linked, apart = links(linked=True), dict.fromkeys(links(linked=False)[:40])
    write_list(place / "forget.edges", linked[:8])
    write_list(place / "retain.edges", [*linked[8:], *((*pair, 0) for pair in apart)])
    network().save(folder / "gcn-start")
    network(kind="GraphForLinkPrediction").save(folder / "links-gcn")
