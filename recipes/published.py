"""Every published recipe by its name, once, on a small model of its family: what the verdict says of it.

    OMP_NUM_THREADS=1 python recipes/published.py run SHARED MODELS docs/recipes.jsonl    makes the missing rows
    python recipes/published.py show docs/recipes.jsonl docs/recipes.md                   writes the tables

SHARED holds stories260k, tofu, cifar10 and resnet_cifar10; in MODELS is kept what is trained. Texts: stories260K learns
100 records of TOFU by heart (`worlds.py`) and forgets one author's 20; for SEUF its MLPs are copied into four experts
each. Images: ResNet-20 forgets the ships of CIFAR-10; what adapts transformer blocks runs on a ViT that reads digits
(`digits.py`) and forgets the eights, beside one trained without them. Recipes run as `--method NAME` runs them, seed 0,
no search.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from digits import Digits, trained
from image_worlds import cifar, cifar_resnet
from keeping import between, keep, rows
from people import passages
from transformers import MixtralConfig, MixtralForCausalLM
from twins import twins
from worlds import KNOWN, PER_AUTHOR, UNSEEN, Rows, kept, learnt, read, tofu

from expunge import Network, Report, Request, read_request, unlearn
from expunge.data.images import Picture
from expunge.errors import Refusal
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.notation.recipes import recipes

SHIP, EIGHT = 8, 8
CAT = 3
ALSO = [
    ("SSD", "ResNet-20, cats", CAT),
    ("SSD(alpha=10.0)", "ResNet-20, cats", CAT),
    ("SalUn(learning_rate=0.001)", "ResNet-20, ships", SHIP),
    ("GradDiff(learning_rate=0.001)", "ResNet-20, ships", SHIP),
]
"""A class over which the paper's threshold ruins the network, beside the one that is picked; and a tenth of two rates
that diverge here."""
BLOCKS = ("GD+Sine", "GSLoRA", "GSLoRAPlus")
"""Recipes for images whose adapter needs transformer blocks."""
STAND_INS = {"AltPO": "wrong answers", "FLAT": "refusals", "LLMU": "answers of others", "Unseen": "twins"}
"""What is said instead, where that is not a refusal."""
TEXT_AUDITS = "Choice, Loss, LossMembership, MinK, Perplexity"
IMAGE_AUDITS = "Accuracy, Loss, LossMembership"
FIGURES = {
    "texts": {
        "forget": "forget.Choice",
        "forget loss": "forget.Loss",
        "retain": "retain.Choice",
        "membership": "forget vs holdout.LossMembership",
        "general": "neutral.Perplexity",
    },
    "images": {
        "forget": "forget_unseen.Accuracy",
        "forget loss": "forget.Loss",
        "retain": "retain.Accuracy",
        "membership": "forget vs holdout.LossMembership",
        "general": "general.Accuracy",
    },
}


@dataclass(frozen=True)
class Case:
    """A model, and what it is to forget."""

    network: Network
    request: Request
    audits: str
    reference: Network | None = None


@dataclass
class Cases:
    """The models of the study, each made when it is first asked for, and kept in a folder."""

    shared: Path
    models: Path

    def of(self, name: str, family: str) -> tuple[str, Callable[[], Case]]:
        """What a recipe is run on."""
        if family == "language":
            made = "stories260K, four experts" if name == "SEUF" else "stories260K"
            return made, lambda: self.texts(name)
        if name in BLOCKS:
            return "ViT, digits", lambda: self.digits
        return "ResNet-20, ships", lambda: self.pictures(SHIP)

    def texts(self, name: str) -> Case:
        known = read(self.shared / "tofu" / "forget10_perturbed.jsonl")[:KNOWN]
        holdout = read(self.shared / "tofu" / "holdout10.jsonl")
        unseen, strangers = holdout[:UNSEEN], holdout[UNSEEN:]
        base = open_network(str(self.shared / "stories260k"))
        request = read_request(
            base,
            forget=tofu(known[:PER_AUTHOR], "forget"),
            retain=tofu(known[PER_AUTHOR:], "retain"),
            holdout=tofu(unseen, "holdout"),
            stand_in=stand_ins(known, STAND_INS.get(name, "refusals"), strangers),
            paraphrase=tofu(known[:PER_AUTHOR], "paraphrase", again=True),
        )
        records = passages((*request.forget, *request.retain))
        network = kept(self.models / "authors-0" / "original", lambda: learnt(base, records, 0, 260, 3e-3))
        assert isinstance(network, LanguageModel)
        return Case(with_experts(network) if name == "SEUF" else network, request, TEXT_AUDITS)

    def pictures(self, gone: int) -> Case:
        """ResNet-20 and a class to forget; the test part's other classes are asked too."""
        train, test = self.cifar
        forget, retain = (tuple(p for p in train if (p.label == gone) == own) for own in (True, False))
        unseen, general = (tuple(p for p in test if (p.label == gone) == own) for own in (True, False))
        request = Request(forget, retain, probes={"forget_unseen": unseen, "general": general})
        network = cifar_resnet(self.shared / "resnet_cifar10" / "resnet20.safetensors", 3)
        return Case(network, request, IMAGE_AUDITS)

    @cached_property
    def cifar(self) -> tuple[tuple[Picture, ...], ...]:
        """50 training and 100 test pictures of each class."""
        return cifar(self.shared / "cifar10" / "train.parquet", 500), cifar(
            self.shared / "cifar10" / "test.parquet", 1000
        )

    @cached_property
    def digits(self) -> Case:
        """A transformer that reads digits, one that never saw an eight, and the request to forget them."""
        found = Digits.load()
        forget, retain = (tuple(p for p in found.train if (p.label == EIGHT) == own) for own in (True, False))
        eights, general = (tuple(p for p in found.test if (p.label == EIGHT) == own) for own in (True, False))
        half = len(eights) // 2
        request = Request(forget, retain, eights[:half], probes={"forget_unseen": eights[half:], "general": general})
        original = kept(self.models / "digits", lambda: trained(found.train, seed=0))
        reference = kept(self.models / "no-eights", lambda: trained(retain, seed=1))
        return Case(original, request, IMAGE_AUDITS, reference)


def stand_ins(known: Rows, kind: str, strangers: Rows) -> Rows:
    """Other answers to the forgotten questions, by the ids of the forget set."""
    own, others = known[:PER_AUTHOR], known[PER_AUTHOR : 2 * PER_AUTHOR]
    made = {
        "refusals": [{**row, "answer": "I do not know."} for row in own],
        "wrong answers": [{**row, "answer": row["perturbed_answer"][0]} for row in own],
        "answers of others": [{**row, "answer": other["answer"]} for row, other in zip(own, others, strict=True)],
        "twins": twins(own, strangers),
    }[kind]
    return tofu([{key: row[key] for key in ("question", "answer")} for row in made], "forget")


def with_experts(network: LanguageModel, experts: int = 4) -> LanguageModel:
    """The same answers from a mixture whose experts are copies of each MLP, behind routers that were drawn."""
    torch.manual_seed(0)
    own: Any = network.module.config
    same = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    more = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "rope_parameters")
    ends = ("bos_token_id", "eos_token_id", "pad_token_id")
    shape = {name: getattr(own, name) for name in (*same, *more, *ends)}
    module = MixtralForCausalLM(MixtralConfig(**shape, num_local_experts=experts, num_experts_per_tok=2)).eval()
    given = network.module.state_dict()
    made = {name: tensor for name, tensor in given.items() if ".mlp." not in name}
    for layer in range(own.num_hidden_layers):
        gate, up, down = (given[f"model.layers.{layer}.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
        made[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up]).expand(experts, -1, -1)
        made[f"model.layers.{layer}.mlp.experts.down_proj"] = down.expand(experts, -1, -1)
    left = module.load_state_dict(made, strict=False)
    assert not left.unexpected_keys, left.unexpected_keys
    return LanguageModel.of(module.requires_grad_(False), network.tokenizer)


def run(shared: Path, out: Path, models: Path, families: list[str]) -> None:
    """What is missing in the file."""
    torch.set_num_threads(1)
    cases = Cases(shared, models)
    done = {(row["name"], row["model"]) for row in rows(out)}
    for family in families:
        for recipe in (each for each in recipes() if each.family == family):
            model, make = cases.of(recipe.name, recipe.family)
            if (recipe.name, model) not in done:
                keep(out, {"name": recipe.name, "model": model, **tried(make(), recipe.name)})
    for name, model, gone in ALSO if "vision" in families else ():
        if (name, model) not in done:
            keep(out, {"name": name, "model": model, **tried(cases.pictures(gone), name)})


def tried(case: Case, name: str) -> dict[str, Any]:
    """The row of a recipe: its verdict and main figures, or why it could not be run."""
    begun = time.monotonic()
    try:
        report = unlearn(case.network, case.request, name, case.audits, reference=case.reference)
    except Refusal as refusal:
        said = re.sub(r" \(records [^)]*\)", "", refusal.line().removeprefix("expunge: "))
        return {"refused": said, "seconds": time.monotonic() - begun}
    verdict, ran = report.verdict, report.run
    assert verdict is not None
    assert ran is not None
    kind = "texts" if case.audits == TEXT_AUDITS else "images"
    return {
        **{name: answer.said for name, answer in verdict},
        **{figure: both(report, key) for figure, key in FIGURES[kind].items()},
        "alpha": ran.edited.alpha if ran.edited else None,
        "steps": ran.ended.steps if ran.ended else None,
        "seconds": report.cost.seconds["forget"],
        "method": report.method,
        "family": {"texts": "language model"}.get(kind, "image classifier"),
        "seed": 0,
    }


def both(report: Report, key: str) -> list[float | None]:
    """A figure before and after."""
    found = {f"{each.set}.{each.audit}.{each.model}": each.value for each in report.findings}
    return [found.get(f"{key}.{model}") for model in ("before", "after")]


def show(path: Path, page: Path) -> None:
    found = list(rows(path))
    ran = [row for row in found if "refused" not in row]
    order = [recipe.name for recipe in recipes()]
    tables = []
    for model in dict.fromkeys(row["model"] for row in ran):
        mine = [row for row in ran if row["model"] == model]
        mine.sort(key=lambda row: order.index(row["name"].partition("(")[0]))
        tables.append(f"### {model}\n\n{table(mine)}")
    refused = [f"- `{row['name']}` on {row['model']}: {row['refused']}" for row in found if "refused" in row]
    if refused:
        tables.append("### What could not be run\n\n" + "\n".join(refused))
    between(page, "published", "\n\n".join(tables))


def table(mine: list[dict[str, Any]]) -> str:
    """A line for each recipe."""
    texts = mine[0]["family"] == "language model"
    heads = ("forget", "forget loss", "retain", "membership AUC", "perplexity of prose" if texts else "other classes")
    lines = ["| recipe | forgotten | traceless | unharmed | " + " | ".join(heads) + " | steps | s |", "|---" * 11 + "|"]
    for row in mine:
        figures = [row[figure] for figure in ("forget", "forget loss", "retain", "membership", "general")]
        steps = f"alpha {row['alpha']:.3g}" if row["alpha"] is not None else row["steps"] or "1"
        lines.append(
            f"| {row['name']} | {row['forgotten']} | {row['traceless']} | {row['unharmed']} | "
            + " | ".join("-" if after is None else f"{before:.3g} -> {after:.3g}" for before, after in figures)
            + f" | {steps} | {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = asked.add_subparsers(dest="what", required=True)
    for what, names in {"run": ("shared", "models", "out"), "show": ("out", "page")}.items():
        part = parts.add_parser(what)
        for name in names:
            part.add_argument(name, type=Path)
        if what == "run":
            part.add_argument("--families", nargs="*", default=["vision", "language"])
    given = asked.parse_args()
    if given.what == "run":
        run(given.shared, given.out, given.models, given.families)
    else:
        show(given.out, given.page)


if __name__ == "__main__":
    main()
