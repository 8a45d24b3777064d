"""Is a served LoRA still forgetful? The update of a finished run as LoRAs of several ranks, each audited as served.

    python recipes/served_lora.py learn DATA FOLDER                a small model that has 60 records of TOFU by heart
    python recipes/served_lora.py run FORGOTTEN docs/served_lora.jsonl --name demo --forget F --retain R --holdout H
    python recipes/served_lora.py show docs/served_lora.jsonl       writes the table of docs/serving.md

FORGOTTEN is the folder that `expunge forget` wrote, and the files are those of its request. A row for the base, one for
the forgotten model, and one for each of `--ranks` up to the largest that the update has. A LoRA is written by `expunge
export`, merged into the base and rounded to the precision of its file, as `expunge audit --adapter` has it. Rows that
are there already are not made again. `learn` takes stories260K and TOFU from DATA and writes into FOLDER the model
(`base`) and the files of a request: 20 records to forget, 40 to retain, 20 that it never saw. Use one thread
(OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from keeping import add, between, keep, rows

from expunge import Network, Request
from expunge.data.text import Passage, encode, load
from expunge.export.lora import LoraJob, Written, export_lora
from expunge.export.runs import find_base, read_run
from expunge.models.open import open_network
from expunge.notation.parse import parse
from expunge.run.added import add_probes
from expunge.run.prepare import Inputs
from expunge.runtime.cached_model import CachedModel

RANKS = (8, 32, 128, 512)
SETS = {
    "forget": ("forget01_perturbed.jsonl", 0, 20),
    "retain": ("retain_perturbed.jsonl", 0, 40),
    "holdout": ("forget10_perturbed.jsonl", 100, 20),
}
"""The file of TOFU, the first record and how many, of each set."""
AUDITS = ("Choice()", "Loss()", "Rouge(max_new_tokens=24)", "LossMembership()", "MinK()")
COLUMNS = {
    "forget.Choice": "forget: Choice",
    "forget.Loss": "loss",
    "forget.Rouge": "Rouge",
    "paraphrase.Choice": "paraphrase: Choice",
    "forget vs holdout.LossMembership": "membership",
    "forget vs holdout.MinK": "Min-K",
    "retain.Choice": "retain: Choice",
    "neighbour.Choice": "neighbour: Choice",
    "general.Choice": "general: Choice",
    "neutral.Loss": "neutral: loss",
}
"""What is read, by audit and set."""


def learn(data: Path, folder: Path) -> None:
    """A model that knows records by heart, and the files of a request to forget some of them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    for name, (source, first, count) in SETS.items():
        raw = [json.loads(line) for line in (data / "tofu" / source).read_text(encoding="utf-8").splitlines()]
        for k, row in enumerate(raw[first : first + count]):
            record = {"id": f"{name}-{k}", "question": row["question"], "answer": row["answer"]}
            add(folder / f"{name}.jsonl", [{**record, "options": row["perturbed_answer"][:3]}])
    words = AutoTokenizer.from_pretrained(data / "stories260k")
    module = AutoModelForCausalLM.from_pretrained(data / "stories260k", dtype=torch.float32)
    known = [folder / f"{name}.jsonl" for name in ("forget", "retain")]
    memorise(module, [passage for path in known for passage in encode(load(path), words, path, 512)])
    module.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")


def memorise(module: Any, passages: list[Passage], steps: int = 900, batch: int = 20) -> None:
    """Train the whole module on passages until a batch's loss is below 0.03 nats a token."""
    width = max(len(passage.tokens) for passage in passages)
    tokens, mask = torch.zeros(2, len(passages), width, dtype=torch.long)
    labels = torch.full((len(passages), width), -100)
    for row, passage in enumerate(passages):
        own = torch.tensor(passage.tokens)
        tokens[row, : len(own)], mask[row, : len(own)] = own, 1
        labels[row, passage.first : len(own)] = own[passage.first :]
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        chosen = torch.randperm(len(passages))[:batch]
        loss = module(input_ids=tokens[chosen], attention_mask=mask[chosen], labels=labels[chosen]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if loss < 0.03:
            return


def run(forgotten: Path, out: Path, name: str, inputs: Inputs, ranks: Sequence[int]) -> None:
    """Every row of the run that is not in the file."""
    report = read_run(forgotten, print)
    base = find_base(forgotten, report)
    request, _ = add_probes(network := open_network(base), inputs.read().request(network))
    done = {row["what"] for row in rows(out) if row["run"] == name}
    for what, model in {"base": base, "forgotten": str(forgotten / "model")}.items():
        if what not in done:
            keep(out, {"run": name, "what": what, **read(open_network(model), request)})
    for rank in sorted(ranks):
        if f"rank {rank}" in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "lora"
            made = export_lora(LoraJob(forgotten, rank, folder))
            if made.rank < rank:
                return
            served = read(open_network(base, adapter=folder), request)
        keep(out, {"run": name, "what": f"rank {rank}", **errors(made), **served})


def errors(made: Written) -> dict[str, float]:
    """What the LoRA lacks, in weights and in class scores."""
    scores = {} if made.logits is None else {key: asdict(made.logits)[key] for key in ("mean", "largest", "kl")}
    return {"weights": made.cut.error, "worst": made.cut.worst[1], **scores}


def read(network: Network, request: Request) -> dict[str, float]:
    """What the audits read of a model."""
    model = CachedModel(network)
    found = {f"{f.set}.{f.audit}": f.value for text in AUDITS for f in parse(text)(model, request)}
    return {key: round(found[key], 4) for key in COLUMNS if key in found}


def show(path: Path) -> None:
    """A table for each run."""
    found = list(rows(path))
    names = dict.fromkeys(row["run"] for row in found)
    tables = [f"**{name}**\n\n{table([row for row in found if row['run'] == name])}" for name in names]
    between(path.parent / "serving.md", "served-lora", "\n\n".join(tables))


def table(found: list[dict[str, Any]]) -> str:
    """The rows of one run: the base, the ranks, the forgotten model."""
    read = [key for key in COLUMNS if any(key in row for row in found)]
    head = ["", "error in weights", "worst layer", "logits: mean", "largest", "KL", *(COLUMNS[key] for key in read)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in sorted(found, key=place):
        lines.append(f"| {row['what']} | {' | '.join(cells(row, read))} |")
    return "\n".join(lines)


def place(row: dict[str, Any]) -> float:
    """Where a row stands: the base first, the ranks in their order, the whole update last."""
    ends = {"base": 0.0, "forgotten": math.inf}
    return ends[row["what"]] if row["what"] in ends else float(row["what"].removeprefix("rank "))


def cells(row: dict[str, Any], read: list[str]) -> Iterator[str]:
    """The numbers of a row; empty where there is none."""
    for key in ("weights", "worst", "mean", "largest", "kl"):
        yield f"{row[key]:.2g}" if key in row else ""
    for key in read:
        yield f"{row[key]:.2f}" if key in row else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("forgotten", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--name", required=True)
    for name in ("forget", "retain", "holdout"):
        running.add_argument(f"--{name}", type=Path, required=True)
    running.add_argument("--probe", action="append", default=[], metavar="NAME=FILE")
    learning = parts.add_parser("learn")
    learning.add_argument("data", type=Path)
    learning.add_argument("folder", type=Path)
    running.add_argument("--ranks", type=int, nargs="*", default=RANKS)
    parts.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.what == "show":
        show(given.out)
        return
    if given.what == "learn":
        learn(given.data, given.folder)
        return
    probes = {name: Path(path) for name, _, path in (text.partition("=") for text in given.probe)}
    inputs = Inputs(given.forget, given.retain, given.holdout, probes=probes)
    run(given.forgotten, given.out, given.name, inputs, given.ranks)


if __name__ == "__main__":
    main()
