"""A Mamba and an RWKV, trained on the spot, forget invented people by the default job.

    python recipes/recurrent_people.py make mamba people-mamba          # a model and its records, for the command
    python recipes/recurrent_people.py run docs/recurrent_people.jsonl  # the default method, beside a retrained model
    python recipes/recurrent_people.py show docs/recurrent_people.jsonl

The world is that of `recipes/people.py`: sixty people, of whom six are forgotten and six were never seen.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from keeping import between, keep, rows
from people import World, trained
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel, RwkvConfig, RwkvForCausalLM

from expunge import unlearn
from expunge.core.request import Example
from expunge.data.text import Passage

PAGE = Path(__file__).parent.parent / "docs" / "recurrent.md"
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
}
STEPS, BATCH, RATE = 300, 32, 5e-3
AUDITS = "Choice(), Loss(), LossMembership(), MinK()"
COLUMNS = {
    "Choice": "forget.Choice",
    "in other words": "paraphrase.Choice",
    "retained": "retain.Choice",
    "membership": "forget vs holdout.LossMembership",
    "Min-K": "forget vs holdout.MinK",
}


def mamba(words: int, _longest: int) -> PreTrainedModel:
    """Two blocks, each a mixer of twice the width."""
    return MambaForCausalLM(MambaConfig(vocab_size=words, tie_word_embeddings=False, **SIZES))


def rwkv(words: int, longest: int) -> PreTrainedModel:
    """Two blocks of time mixing and channel mixing."""
    return RwkvForCausalLM(RwkvConfig(vocab_size=words, context_length=longest, intermediate_size=256, **SIZES))


KINDS = {"mamba": mamba, "rwkv": rwkv}


def make(kind: str, folder: Path, seed: int = 0) -> None:
    """A model that has the people by heart, one that never saw those to forget, and a file for each set."""
    world = World.drawn(seed)
    request = world.request()
    for name, forgotten in (("model", True), ("retrained", False)):
        trained(world, forgotten, seed, STEPS, BATCH, KINDS[kind], RATE).save(folder / name)
    sets = {"forget": request.forget, "retain": request.retain, "holdout": request.holdout, **request.probes}
    for name, records in sets.items():
        lines = [json.dumps(_row(record)) for record in records]
        (folder / f"{name.replace(' ', '-')}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(record: Example) -> dict[str, object]:
    """The record as a file has it; a tokenizer adds the end of an answer itself."""
    assert isinstance(record, Passage)
    right, *wrong = (each.answer.removesuffix("[end]").strip() for each in (record, *record.alternatives))
    return {"id": record.id, "prompt": f"{record.prompt} ", "completion": right, "options": wrong}


def run(out: Path, seeds: list[int]) -> None:
    """What is missing in the file: the model, the forgetful one and the retrained one, for each kind and seed."""
    for seed in seeds:
        for kind, build in KINDS.items():
            if any((row["kind"], row["seed"]) == (kind, seed) for row in rows(out)):
                continue
            world = World.drawn(seed)
            model, retrained = (trained(world, each, seed, STEPS, BATCH, build, RATE) for each in (True, False))
            report = unlearn(model, world.request(), audits=AUDITS, reference=retrained, added_probes=False)
            verdict = {name: answer.said for name, answer in report.verdict} if report.verdict else {}
            for name in ("before", "after", "reference"):
                found = {f"{f.set}.{f.audit}": f.value for f in report.findings if f.model == name}
                read = {column: round(found[key], 4) for column, key in COLUMNS.items()}
                keep(out, {"kind": kind, "seed": seed, "model": name, **read, "verdict": verdict})


def show(path: Path) -> None:
    """Each seed's values of each model, in the order of the seeds."""
    found = list(rows(path))
    lines = ["| | model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for kind in KINDS:
        for name in ("before", "after", "reference"):
            each = sorted((r for r in found if (r["kind"], r["model"]) == (kind, name)), key=lambda r: r["seed"])
            cells = [", ".join(f"{row[column]:.2f}" for row in each) for column in COLUMNS]
            lines.append(f"| {kind} | {name.replace('reference', 'retrained')} | {' | '.join(cells)} |")
    between(PAGE, "recurrent-people", "\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    making = parts.add_parser("make")
    making.add_argument("kind", choices=KINDS)
    making.add_argument("folder", type=Path)
    running = parts.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parts.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "make":
        make(given.kind, given.folder)
    elif given.what == "run":
        run(given.out, given.seeds)
    else:
        show(given.out)


if __name__ == "__main__":
    main()
