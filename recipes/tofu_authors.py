"""TOFU's table on a pretrained model: SmolLM2-135M that learnt 20 authors, and methods of one length beside retraining.

    OMP_NUM_THREADS=1 python recipes/tofu_authors.py run DATA docs/tofu_authors.jsonl --models MODELS
    python recipes/tofu_authors.py show docs/tofu_authors.jsonl          writes the tables of docs/tofu.md

The model is `library` of `recipes/worlds.py`: 400 records of forget10_perturbed, learnt by heart in all weights. One or
two of its authors are to go; the reference learnt the others alone. Every method but the default takes five epochs of
the forget set in batches of 4 + 4 at one of the rates, and nothing stops it. Each is measured as by `expunge bench tofu
--definition released`, of a part of each set (SIZES). Rows that the file has are not made again; DATA holds tofu/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from keeping import between, keep, mean_and_range, rows, table
from people import passages
from twins import twins
from worlds import UNSEEN, Places, Rows, library_model, library_records, library_request, read, tofu

from expunge import Model, Network
from expunge.benchmarks._data import Data
from expunge.benchmarks._numbers import compare
from expunge.benchmarks._tofu import DEFINITIONS, ratios
from expunge.benchmarks.tofu import TOFU
from expunge.events import ignore_event
from expunge.primitives.statistics import priv_leak
from expunge.run.choose import choose_method, default_method
from expunge.runtime.cached_model import CachedModel

BENCHMARK = TOFU(split="forget01", definition="released")
SIZES = {"retain": 40, "real_authors": 40, "world_facts": 40, "holdout": 60}
"""Questions of each set, spread evenly over its file; the holdout's are the first that no method may read."""
PAGE = Path(__file__).parent.parent / "docs" / "tofu.md"

RATES = (1e-3, 3e-4)
LORA = "LoRA(rank=8, alpha=16.0, targets='mlp')"
SAYS = {"refusals": "I do not know."}


def trained(objective: str, adapter: str = LORA, more: str = "") -> str:
    """A method of the common length, at a rate that is filled in later."""
    length = "steps=Epochs(count=5.0), batch=4, retain_batch=4, learning_rate=RATE, stop=None, norms=False"
    return f"Finetune(objective={objective}, adapter={adapter}, {length}{more})"


def bounded(form: str, rank: int = 8, omega: float = 100.0) -> str:
    return f"Bounded(map='{form}', rank={rank}, alpha={2.0 * rank}, omega={omega})"


METHODS = {
    "GD": trained("GradDiff()"),
    "GD, clipped": trained("GradDiff()", more=", clip=1.0"),
    "GD, weight decay": trained("GradDiff()", more=", weight_decay=0.1"),
    "GD, linear": trained("GradDiff()", bounded("linear")),
    "GD, sine": trained("GradDiff()", bounded("sine")),
    "GD, sine, rank 4": trained("GradDiff()", bounded("sine", 4)),
    "GD, sine, rank 32": trained("GradDiff()", bounded("sine", 32)),
    "GD, sine, omega 10": trained("GradDiff()", bounded("sine", omega=10.0)),
    "GD, tanh": trained("GradDiff()", bounded("tanh")),
    "KL": trained("Ascent() + RetainKL()"),
    "NPO": trained("NPO(beta=0.1) + RetainNLL()"),
    "SimNPO": trained("0.125 * SimNPO(beta=4.5, margin=0.0) + RetainNLL()"),
    "DPO of refusals": trained("DPO(beta=0.1) + RetainNLL()"),
    "AltPO": trained("DPO(beta=0.1) + RetainNLL()"),
    "UNDIAL": trained("UNDIAL(strength=10.0)"),
    "RMU": trained("RMU(strength=6.5, layer=0.21875) + 1200.0 * RetainHidden(layer=0.21875)"),
    "LoKU": trained("InvertedHinge() + RetainNLL()", "Fila(adapter=LoRA(rank=32, alpha=64.0, targets='all'))"),
    "Unseen": trained("Unseen() + RetainNLL() + RetainKL()"),
    "default": "",
}
"""In the notation; each objective's settings are those of its published recipe. The default has a rate and a length of
its own."""
STAND_INS = {"DPO of refusals": "refusals", "AltPO": "wrong answers", "Unseen": "twins"}
MODELS = ("original", "retrained", "retrained again")


# Rows


def said_instead(own: Rows, strangers: Rows, kind: str) -> Rows:
    """What a record's answer is replaced with, for methods that need it."""
    if kind == "twins":
        return tofu(twins(own, strangers), "forget")
    wrong = kind == "wrong answers"
    made = [{**row, "answer": row["perturbed_answer"][0] if wrong else SAYS[kind]} for row in own]
    return tofu([{key: row[key] for key in ("question", "answer")} for row in made], "forget")


def written(folder: Path, places: Places, count: int) -> Data:
    """The benchmark's files, of the authors that are forgotten and of those that stay."""
    own, others = library_records(0, places, count)
    files = {
        "forget01_perturbed": own,
        "retain_perturbed": spread(others, SIZES["retain"]),
        "holdout01": read(places.data / "tofu" / "holdout10.jsonl")[UNSEEN:][: SIZES["holdout"]],
        **{
            f"{name}_perturbed": spread(read(places.data / "tofu" / f"{name}_perturbed.jsonl"), SIZES[name])
            for name in ("real_authors", "world_facts")
        },
    }
    for name, found in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return Data(folder, BENCHMARK.home)


def spread(found: Rows, count: int) -> Rows:
    """So many of the rows, evenly."""
    return [found[k * len(found) // count] for k in range(count)]


def measure(network: Model, data: Data) -> dict[str, Any]:
    """Every number of the benchmark that needs no reference, and the truth ratios that forget quality is made of."""
    values = BENCHMARK.measure(network, data, CachedModel(network), ignore_event)
    found = {f"{number.set}: {number.name}": number.value for number in BENCHMARK.numbers(values, {})}
    return {"numbers": found, "ratios": ratios(values, "forget", DEFINITIONS[BENCHMARK.definition])}


@cache
def original(places: Places) -> Network:
    request = library_request(0, places)
    return library_model("original", passages((*request.forget, *request.retain)), 0, places)


def retrained(places: Places, count: int, name: str) -> Network:
    which = {"retrained": 1, "retrained again": 2}[name]
    return library_model(
        f"{name.split()[-1]}-{count}-0", passages(library_request(0, places, count).retain), which, places
    )


def forgotten(places: Places, count: int, name: str, rate: float | None, seed: int) -> Model:
    """The original after a method."""
    own, _ = library_records(0, places, count)
    strangers = read(places.data / "tofu" / "holdout10.jsonl")
    kind = STAND_INS.get(name)
    stand_in = said_instead(own, strangers[UNSEEN + SIZES["holdout"] :], kind) if kind else None
    request = library_request(0, places, count, stand_in)
    text = METHODS[name].replace("RATE", repr(rate)) or default_method("language", True)
    method = choose_method(text, "language").method.with_seed(seed)
    model = original(places)
    return method.fit(model, request)(model, request).plain()


Asked = tuple[str, float | None, int]
"""A name, a rate and a seed."""


def rows_asked(names: Sequence[str], rates: Sequence[float], seeds: Sequence[int]) -> Iterator[Asked]:
    """What is to be made: of models as they are and of the default no rates, of models no seeds."""
    for seed in seeds:
        for rate in rates:
            for name in names:
                alone = name in MODELS or not METHODS[name]
                if not (alone and rate != rates[0]) and not (name in MODELS and seed != seeds[0]):
                    yield name, None if alone else rate, seed


def run(places: Places, out: Path, counts: Sequence[int], asked: Sequence[Asked]) -> None:
    """What is missing in the file."""
    for count in counts:
        with TemporaryDirectory() as folder:
            data = written(Path(folder), places, count)
            done = {(row["method"], row["rate"], row["seed"]) for row in rows(out) if row["authors"] == count}
            for name, rate, seed in asked:
                if (name, rate, seed) in done:
                    continue
                made: Model = original(places)
                begun = time.monotonic()
                if name in MODELS:
                    made, seconds = made if name == "original" else retrained(places, count, name), 0.0
                else:
                    made = forgotten(places, count, name, rate, seed)
                    seconds = round(time.monotonic() - begun, 1)
                row = {"authors": count, "method": name, "rate": rate, "seed": seed, "seconds": seconds}
                keep(out, {**row, **measure(made, data)})


# Tables

Row = dict[str, Any]
Groups = dict[tuple[str, float | None], list[Row]]
"""Rows of all seeds, by method and rate."""
UTILITY = "all: model utility"
LOSS, MINK, PLUS = (f"forget vs holdout: membership by {how}" for how in ("loss", "min_k", "min_k_plus"))
PARTS = [
    (f"{where}: {name}", f"{where.replace('_', ' ')}, {name.removeprefix('option ')}")
    for where in ("retain", "real_authors", "world_facts")
    for name in ("probability" if where == "retain" else "option probability", "ROUGE", "truth ratio")
]


def quality(row: Row, reference: Row) -> dict[str, float | None]:
    """Forget quality against the retrained model: p, distance and side of the Kolmogorov-Smirnov test; and PrivLeak."""
    averaged = DEFINITIONS[BENCHMARK.definition].averaged
    found = {number.name: number.value for number in compare(row["ratios"], reference["ratios"], "", averaged)}
    return {**found, "PrivLeak": priv_leak(row["numbers"][MINK], reference["numbers"][MINK])}


def wanted(row: Row, models: dict[str, Row]) -> list[bool]:
    """Whether neither truth ratios nor membership tell it from the retrained model, and it is as useful as before."""
    own, reference = row["numbers"], models["retrained"]["numbers"]
    near = [abs(own[name] - reference[name]) <= 0.10 for name in (LOSS, MINK)]
    p = quality(row, models["retrained"])["forget quality"] or 0.0
    return [p >= 0.05, all(near), own[UTILITY] >= models["original"]["numbers"][UTILITY] - 0.01]


def show(path: Path) -> None:
    """A table of forgetting and one of utility for each number of authors."""
    for count in (1, 2):
        mine = [row for row in rows(path) if row["authors"] == count]
        models = {row["method"]: row for row in mine if row["method"] in MODELS}
        if "retrained" in models:
            groups: dict[tuple[str, float | None], list[Row]] = {}
            order = (*MODELS, *METHODS)
            for row in sorted(mine, key=lambda row: (order.index(row["method"]), -(row["rate"] or 0), row["seed"])):
                groups.setdefault((row["method"], row["rate"]), []).append(row)
            text = f"{forgetting(groups, models)}\n\n{usefulness(groups)}"
            between(PAGE, f"tofu-{count}", text)


def forgetting(groups: Groups, models: dict[str, Row]) -> str:
    """Against the retrained model."""
    heads = ["", "rate", "seeds", "forget quality (p)", "KS distance, side", "model utility", "quality x utility"]
    heads += [
        "ROUGE",
        "extraction strength",
        "membership by loss",
        "by Min-K",
        "by Min-K++",
        "PrivLeak",
        "as asked",
        "s",
    ]
    lines = []
    for (name, rate), group in groups.items():
        found = [quality(row, models["retrained"]) for row in group]
        numbers = [row["numbers"] for row in group]
        products = [(f["forget quality"] or 0.0) * n[UTILITY] for f, n in zip(found, numbers, strict=True)]
        sides = "/".join({-1.0: "-", 0.0: "=", 1.0: "+"}[float(f["KS side"] or 0)] for f in found)
        met = "" if name in MODELS else ", ".join(" ".join(("no", "yes")[m] for m in wanted(r, models)) for r in group)
        cells = [
            mean_and_range([f["forget quality"] for f in found], 3),
            f"{mean_and_range([f['KS distance'] for f in found], 2)} {sides}",
            mean_and_range([n[UTILITY] for n in numbers], 3),
            mean_and_range(products),
            *(
                mean_and_range([n[key] for n in numbers], 2)
                for key in ("forget: ROUGE", "forget: extraction strength", LOSS, MINK, PLUS)
            ),
            mean_and_range([f["PrivLeak"] for f in found], 0),
            met,
            mean_and_range([row["seconds"] for row in group], 0) if name not in MODELS else "",
        ]
        lines.append([name, f"{rate:g}" if rate else "", str(len(group)), *cells])
    return table(heads, lines)


def usefulness(groups: Groups) -> str:
    """The nine parts of model utility."""
    heads = ["", "rate", "model utility", *(name for _, name in PARTS)]
    keys = (UTILITY, *(key for key, _ in PARTS))
    lines = [
        [
            name,
            f"{rate:g}" if rate else "",
            *(mean_and_range([row["numbers"][key] for row in group], 3) for key in keys),
        ]
        for (name, rate), group in groups.items()
    ]
    return table(heads, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="what", required=True)
    running = parts.add_parser("run")
    running.add_argument("data", type=Path)
    running.add_argument("out", type=Path)
    running.add_argument("--models", type=Path, default=Path("test-set-models"), help="where learnt models are kept")
    running.add_argument("--device", default="cpu")
    running.add_argument("--authors", type=int, nargs="*", default=[1, 2])
    running.add_argument("--rates", type=float, nargs="*", default=RATES)
    running.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    running.add_argument("--methods", nargs="*", choices=[*MODELS, *METHODS], default=[*MODELS, *METHODS])
    parts.add_parser("show").add_argument("out", type=Path)
    given = parser.parse_args()
    if given.what == "run":
        places = Places(given.data, given.models, given.device)
        run(places, given.out, given.authors, list(rows_asked(given.methods, given.rates, given.seeds)))
    else:
        show(given.out)


if __name__ == "__main__":
    main()
