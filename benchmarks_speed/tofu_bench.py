"""`expunge bench tofu` against an evaluation of one metric at a time, and against open-unlearning's own log.

    python benchmarks_speed/tofu_bench.py MODEL_FOLDER TOFU_FOLDER LOG.json --write

The naive evaluation makes a pass for each metric, in padded batches of 16, float32 scores of every token, and continues
prompts with transformers' `generate`, as evaluation scripts do. The product reads each text once. Both must find the
same number for every text, to 1e-6 of a probability, and the product's must be those of the log to 1e-4: every value
of every sample, and every total.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from side_by_side import machine

from expunge.benchmarks._data import Data
from expunge.benchmarks._logs import read_log
from expunge.benchmarks._reading import Item
from expunge.benchmarks._tofu import totals, with_ratios
from expunge.benchmarks._values import Column, Values
from expunge.benchmarks.tofu import TOFU
from expunge.events import ignore_event
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.runtime.cached_model import CachedModel

AT_ONCE = 16
BENCHMARK = TOFU(definition="open-unlearning", template="Question: {question}\nAnswer: {answer}")
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.jsonl"


def passed(network: LanguageModel, batch: Sequence[Item]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities of all classes at the labelled tokens of each text of a padded batch, and those tokens."""
    width = max(item.passage.size for item in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, item in enumerate(batch):
        tokens[row, : item.passage.size] = torch.tensor(item.passage.tokens)
        mask[row, : item.passage.size] = 1
    scores = network.module(input_ids=tokens, attention_mask=mask).logits.float().log_softmax(-1)
    for row, item in enumerate(batch):
        own = slice(item.passage.first - 1, item.passage.size - 1)
        yield scores[row, own], tokens[row, item.passage.first : item.passage.size]


def right(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return scores.gather(-1, labels[:, None])[:, 0].double()


def one(measure: str, scores: torch.Tensor, labels: torch.Tensor, text: str) -> float:
    """One metric of one text, spelled out."""
    if measure == "tokens":
        return len(labels)
    own, inner = right(scores, labels), slice(0, len(labels) - 1)
    if measure == "loss":
        return -own.mean().item()
    if measure == "zlib":
        return -own.mean().item() / len(zlib.compress(text.encode()))
    hits = (scores.argmax(-1) == labels)[inner].tolist()
    if measure == "exact_memorisation":
        return sum(hits) / len(hits)
    if measure == "extraction_strength":
        return 1 - next((k for k in range(len(hits)) if all(hits[k:])), len(hits) - 1) / len(hits)
    rows = own[inner]
    if measure == "min_k_plus":
        p = scores[inner].double()
        mean = (p.exp() * p).sum(-1)
        spread = (p.exp() * (p - mean[:, None]).square()).sum(-1).clamp(min=1e-6)
        rows = (rows - mean) / spread.sqrt()
    return -rows.sort().values[: max(1, int(0.4 * len(rows)))].mean().item()


def naively(network: LanguageModel, items: list[Item]) -> Values:
    """Each measure of each set and answer by a pass of its own."""
    found = []
    with torch.inference_mode():
        columns = dict.fromkeys(Column(i.set, m, i.answer) for i in items for m in i.measures if m != "tokens")
        for column in columns:
            group = [i for i in items if (i.set, i.answer) == (column.set, column.answer)]
            for start in range(0, len(group), AT_ONCE):
                batch = group[start : start + AT_ONCE]
                for item, (scores, labels) in zip(batch, passed(network, batch), strict=True):
                    text = network.tokenizer.decode(labels, skip_special_tokens=True)
                    found.append((column, item.record, one(column.measure, scores, labels, text)))
        for where in dict.fromkeys(item.set for item in items if item.write):
            group = [item for item in items if item.write and item.set == where]
            for start in range(0, len(group), AT_ONCE):
                found += continued(network, group[start : start + AT_ONCE])
    return Values.collect(found)


def continued(network: LanguageModel, batch: Sequence[Item]) -> list[tuple[Column, int, float]]:
    width = max(len(item.passage.prompt_tokens) for item in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, item in enumerate(batch):
        tokens[row, width - len(item.passage.prompt_tokens) :] = torch.tensor(item.passage.prompt_tokens)
        mask[row, width - len(item.passage.prompt_tokens) :] = 1
    pad = network.tokenizer.pad_token_id or 0
    made = network.module.generate(
        tokens, attention_mask=mask, max_new_tokens=200, do_sample=False, use_cache=True, pad_token_id=pad
    )
    texts = network.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
    scores = BENCHMARK.score(batch, texts)
    pairs = [(item, name, value) for item, each in zip(batch, scores, strict=True) for name, value in each.items()]
    return [(Column(item.set, name, item.answer), item.record, value) for item, name, value in pairs]


def farthest(one: Values, other: Values) -> dict[str, float]:
    """Of each measure the largest difference over all texts; of losses that of their probabilities."""
    found: dict[str, float] = {}
    for column, known in one.columns.items():
        for record, value in known.items():
            theirs = other.columns[column][record]
            pair = (math.exp(-value), math.exp(-theirs)) if column.measure == "loss" else (value, theirs)
            found[column.measure] = max(found.get(column.measure, 0.0), abs(pair[0] - pair[1]))
    return found


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "log"):
        read.add_argument(name, type=Path)
    read.add_argument("--repeats", type=int, default=3)
    read.add_argument("--write", action="store_true")
    given = read.parse_args()
    torch.set_num_threads(1)
    network = open_network(str(given.model))
    data = Data(given.data, BENCHMARK.home)
    items = BENCHMARK.items(data, network)
    BENCHMARK.score(items[:1], ["warm"])
    seconds: dict[str, list[float]] = {"product": [], "one metric at a time": []}
    for _ in range(given.repeats):  # side by side, so that what else runs on the machine slows both
        start = time.process_time()
        ours = BENCHMARK.measure(network, data, CachedModel(network), ignore_event)
        seconds["product"].append(time.process_time() - start)
        start = time.process_time()
        naive = naively(network, BENCHMARK.items(data, network))
        seconds["one metric at a time"].append(time.process_time() - start)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    apart, log = farthest(naive, ours), json.loads(given.log.read_text())
    golden = farthest(read_log(given.log), with_ratios(ours))
    known = totals(ours)
    sums = {name: abs(known[name] - log[name]["agg_value"]) for name in known if name in log}
    row = {
        "machine": machine(),
        "texts": len(items),
        "repeats": given.repeats,
        "cpu_seconds": {name: round(each, 1) for name, each in medians.items()},
        "times": round(medians["one metric at a time"] / medians["product"], 1),
        "largest difference from the naive evaluation": apart,
        "largest difference from the log, of a sample": golden,
        "largest difference from the log, of a total": max(sums.values()),
        "totals": len(sums),
    }
    print(json.dumps(row, indent=1))
    assert max(golden.values()) < 1e-4
    assert max(sums.values()) < 1e-4
    assert max(value for name, value in apart.items() if not name.startswith("rouge")) < 1e-5
    if given.write:
        PAGE.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
