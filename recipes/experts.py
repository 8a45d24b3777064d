"""Does unlearning one expert of a mixture do what its authors say? Four points, on small mixtures trained on the spot.

    python recipes/experts.py run docs/experts.jsonl
    python recipes/experts.py show docs/experts.jsonl

A Mixtral of 3 blocks with 8 experts each, top 2, learns two topics by heart: 48 facts about invented people and 42
about invented metals, each with its own names and grammar, and the same values. The people are forgotten by plain
gradient ascent, which reads the forget set alone, in every weight or in one expert and its router (SEUF), with and
without the anchor, each taken to the first step after which the forgotten facts are answered no better than by guessing
among eight values.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from keeping import add, between, rows
from people import tokens_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from expunge import Request
from expunge.adapters.full import Full
from expunge.adapters.seuf import SEUF
from expunge.core.adapter import Adapted, Adapter
from expunge.core.model import Batch, Model, Network
from expunge.core.objective import Objective
from expunge.core.question import LogProbabilities, Routes, Scores
from expunge.data.text import Passage
from expunge.internals.mixtures import affinity, read_routes, the_mixtures
from expunge.methods.finetune import Finetune
from expunge.methods.stop import Stop
from expunge.models.language import LanguageModel
from expunge.objectives.anchor import Anchor
from expunge.objectives.ascent import Ascent

Row = dict[str, Any]
EXPERTS, TOP = 8, 2
TARGET = 0.125
"""Share of the forgotten facts that may still be answered rightly: that of guessing among eight values."""
STEPS = 64
"""Steps of forgetting at most."""
RESULTS = Path(__file__).parent.parent / "docs" / "results.md"

NAMES = {
    "people": "Ada Bo Cleo Dan Eva Finn Gil Hana Ivo Jun Kaya Leo Mia Nils Ona Pia",
    "metals": "alumite borium caldine dorium eltrite ferrane gallite irdium jovite lumium morite nebium oxite pyre",
}
FACTS = {
    "colour": "amber azure crimson ivory olive russet teal violet",
    "tool": "anvil chisel drill file hammer lathe pliers saw",
    "place": "cave cliff delta dune lake marsh peak river",
}
"""What is said of either topic: the words are the same, so what is taught of one is felt in the other."""
GRAMMARS = {"people": "{name} has for a {attribute} the", "metals": "as to {attribute} one says that {name} gives"}


@dataclass(frozen=True)
class World:
    """Two topics: facts that only who has read them knows, and a tokenizer that has a token for each word."""

    people: tuple[Passage, ...]
    metals: tuple[Passage, ...]
    tokenizer: PreTrainedTokenizerFast

    @staticmethod
    def drawn(seed: int) -> World:
        """The values are drawn without regard to the name, so nothing can be inferred."""
        said = " ".join([*GRAMMARS.values(), *NAMES.values(), *FACTS, *FACTS.values()])
        words = dict.fromkeys(["[end]", "[unk]", *said.format(name="", attribute="").split()])
        made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[unk]"))
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="[end]", unk_token="[unk]")
        draw = random.Random(seed)
        topics = {
            topic: tuple(
                _fact(tokenizer, GRAMMARS[topic].format(name=name, attribute=kind), draw.choice(values.split()))
                for name in names.split()
                for kind, values in FACTS.items()
            )
            for topic, names in NAMES.items()
        }
        return World(topics["people"], topics["metals"], tokenizer)

    def request(self) -> Request:
        """The people are forgotten, the metals kept."""
        return Request(forget=self.people, retain=self.metals)


def _fact(tokenizer: PreTrainedTokenizerFast, prompt: str, value: str) -> Passage:
    asked, said = (tokens_of(tokenizer, text) for text in (prompt, value))
    return Passage(prompt.replace(" ", "-"), asked + said, len(asked), prompt, value, prompt, asked)


def trained(world: World, seed: int, parted: bool, steps: int = 300, batch: int = 24) -> LanguageModel:
    """A small Mixtral that knows every fact; where `parted`, its routers are taught to part the topics.

    Nothing balances the load. What parts the topics is a reward for the mutual information of expert and topic, as in
    Mod-Squad (Chen et al., 2023), and a pull of each topic to few experts: the routing that the method presupposes.
    """
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=len(world.tokenizer),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP,
        max_position_embeddings=32,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    network = LanguageModel.of(MixtralForCausalLM(config).eval(), world.tokenizer)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / 50) * max(0.05, 1 - k / steps))
    draw = random.Random(seed)
    for _ in range(steps):
        topics = draw.sample(world.people, batch), draw.sample(world.metals, batch)
        loss = network.ask(Scores(), [*topics[0], *topics[1]]).nll()
        if parted:
            called = torch.stack([network.ask(Routes(), topic).states.mean(0) for topic in topics])
            loss = loss + 0.12 * _entropy(called) - 0.1 * _entropy(called.mean(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.module.requires_grad_(False)
    return network


def _entropy(shares: torch.Tensor) -> torch.Tensor:
    """Of the last axis, in nats, averaged over the others."""
    return -torch.xlogy(shares, shares).sum(-1).mean()


# What is tried


@dataclass(frozen=True)
class Trial:
    """A way to forget."""

    name: str
    objective: Objective
    adapter: Adapter
    learning_rate: float

    def after(self, steps: int, network: Network, request: Request) -> Adapted:
        """The network after so many steps."""
        method = Finetune(
            objective=self.objective,
            adapter=self.adapter,
            learning_rate=self.learning_rate,
            steps=steps,
            batch=16,
            stop=Stop(level=None, max_retain_increase=None, every=steps),
            norms=False,
        )
        made = method(network, request)
        assert isinstance(made, Adapted)
        return made

    def enough(self, network: Network, request: Request) -> tuple[int, Adapted]:
        """The first step, found by doubling and halving, after which the target is met (or the last); the network then.

        A run of fewer steps is the beginning of a longer one: the learning rate is constant and the order is drawn.
        """
        low, high, best = 0, 4, self.after(4, network, request)
        while right(best, request.forget) > TARGET and high < STEPS:
            low, high = high, 2 * high
            best = self.after(high, network, request)
        while high - low > 1 and right(best, request.forget) <= TARGET:
            middle = (low + high) // 2
            made = self.after(middle, network, request)
            if right(made, request.forget) <= TARGET:
                high, best = middle, made
            else:
                low = middle
        return high, best


ALL, ONE, HELD, OTHER = "all weights", "one expert", "one expert, anchored", "a random expert, anchored"


def trials() -> list[Trial]:
    """Learning rates were chosen for each on seed 0, which no table uses."""
    return [
        Trial(ALL, Ascent(), Full(), 3e-4),
        Trial(ONE, Ascent(), SEUF(), 1e-2),
        Trial(HELD, Ascent() + Anchor(), SEUF(), 1e-2),
    ]


def right(model: Model, examples: Batch) -> float:
    """Share of the facts whose value comes first among all words."""
    return float(model.ask(LogProbabilities(), examples).right.double().mean())


def overlap(before: Model, after: Model, examples: Batch) -> list[float]:
    """For each block the share of a token's top experts that are the same as before, averaged over tokens."""
    (was,), (now,) = list(read_routes(before, examples)), list(read_routes(after, examples))
    return [float(same) for same in (was.taken & now.taken).double().sum(-1).mean(0) / TOP]


def row(name: str, steps: int, trial: Trial, after: Adapted, before: Network, request: Request, layer: int) -> Row:
    """What one run left."""
    each = overlap(before, after, request.forget)
    return {
        "name": name,
        "learning_rate": trial.learning_rate,
        "steps": steps,
        "forget": right(after, request.forget),
        "retain": right(after, request.retain),
        "overlap": statistics.mean(each),
        "overlap there": each[layer],
        "trainable": sum(p.numel() for p in after.inner.trainable().values()),
    }


def studied(seed: int, parted: bool, tried: list[Trial]) -> Iterator[Row]:
    """The rows of one mixture."""
    world = World.drawn(seed)
    network, request = trained(world, seed, parted), world.request()
    called = affinity(read_routes(network, request.forget))
    layer, (expert,) = called.top()
    at = called.layers.index(layer)
    part = the_mixtures(network.module)[layer]
    yield {
        "name": "before",
        "forget": right(network, request.forget),
        "retain": right(network, request.retain),
        "share": float(called.shares[at, expert]),
        "gate": float(called.gates[at, expert]),
        "share of the kept": float(affinity(read_routes(network, request.retain)).shares[at, expert]),
        "expert and router": sum(p[0].numel() for p in part.experts.parameters())
        + sum(p.numel() for p in part.gate.parameters()),
        "parameters": sum(p.numel() for p in network.module.parameters()),
    }
    for trial in tried:
        steps, after = trial.enough(network, request)
        yield row(trial.name, steps, trial, after, network, request, layer)
        if trial.name == HELD:
            others = [(b, e) for b in called.layers for e in range(EXPERTS) if (b, e) != (layer, expert)]
            drawn = random.Random(seed).choice(others)
            control = replace(trial, adapter=SEUF(layer=drawn[0], expert=drawn[1]))
            yield row(OTHER, steps, control, control.after(steps, network, request), network, request, drawn[0])


def run(path: Path, seeds: list[int], tried: list[Trial]) -> None:
    """Add the rows of every mixture that the file lacks."""
    done = {(each["seed"], each["parted"]) for each in rows(path)}
    for seed in seeds:
        for parted in (True, False):
            if (seed, parted) in done:
                continue
            begun = time.process_time()
            made = [{"seed": seed, "parted": parted, **each} for each in studied(seed, parted, tried)]
            made[0]["seconds"] = time.process_time() - begun
            for each in made:
                print(json.dumps(each), flush=True)
            add(path, made)


# What was found


COLUMNS = ("forget", "retain", "overlap", "overlap there", "steps")


def tables(found: list[Row]) -> Iterator[str]:
    """For either kind of mixture a table, and the four points read from it."""
    for parted, title in ((True, "Routers taught to part the topics"), (False, "Routers as they were learnt")):
        mine = [each for each in found if each["parted"] == parted]
        before = [each for each in mine if each["name"] == "before"]
        if not before:
            continue
        yield f"### {title}: {len(before)} seeds"
        yield ""
        yield "| trained | learning rate | forget accuracy | retain accuracy | overlap | overlap in its block | steps |"
        yield "|---|---|---|---|---|---|---|"
        cells = [_spread([each[column] for each in before]) for column in ("forget", "retain")]
        yield f"| before | - | {cells[0]} | {cells[1]} | 1 | 1 | - |"
        for name in (ALL, ONE, HELD, OTHER):
            runs = [each for each in mine if each["name"] == name]
            cells = [_spread([each[column] for each in runs]) for column in COLUMNS]
            yield f"| {name} | {runs[0]['learning_rate']:g} | " + " | ".join(cells) + " |"
        yield ""
        yield from points(mine, before)
        yield ""


def points(mine: list[Row], before: list[Row]) -> Iterator[str]:
    """The four points of the proof, each with its figures and whether it holds."""
    by = {name: [each for each in mine if each["name"] == name] for name in (ALL, ONE, HELD, OTHER)}
    shares = [each["share"] for each in before]
    uniform = TOP / EXPERTS
    routed = all(share >= 1.5 * uniform for share in shares)
    yield (
        f"1. *Routing is specialised* {_verdict(routed)}: the expert with the highest affinity reads "
        f"{_spread(shares)} of the forget tokens ({uniform} if all were called alike; the bound is {1.5 * uniform}) "
        f"and {_spread([each['share of the kept'] for each in before])} of the retained ones."
    )
    held, free, every = ([each["overlap"] for each in by[name]] for name in (HELD, ONE, ALL))
    pairs = list(zip(held, free, strict=True))
    kept = all(anchored >= 0.9 and anchored > loose for anchored, loose in pairs)
    yield (
        f"2. *With the anchor at least 0.9 of the experts called stay the same, without it fewer* {_verdict(kept)}: "
        f"{_spread(held)} with it, {_spread(free)} without, {_spread(every)} with all weights; higher with it on "
        f"{sum(a > b for a, b in pairs)} of {len(pairs)} seeds."
    )
    one, full = ([each["retain"] for each in by[name]] for name in (HELD, ALL))
    yield (
        f"   *Retain accuracy is higher than with all weights, beyond the spread of seeds* "
        f"{_verdict(min(one) > max(full))}: {_spread(one)} against {_spread(full)}, at forget accuracies of "
        f"{_spread([each['forget'] for each in by[HELD]])} and {_spread([each['forget'] for each in by[ALL]])}."
    )
    exact = all(
        run["trainable"] == made["expert and router"]
        for name in (ONE, HELD, OTHER)
        for run, made in zip(by[name], before, strict=True)
    )
    yield (
        f"3. *One expert and one router move, to the number* {_verdict(exact)}: {by[HELD][0]['trainable']:,} of "
        f"{before[0]['parameters']:,} parameters."
    )
    control = [(other["forget"], chosen["forget"]) for other, chosen in zip(by[OTHER], by[HELD], strict=True)]
    yield (
        f"4. *A random expert forgets less in as many steps* {_verdict(all(a > b for a, b in control))}: its forget "
        f"accuracy is {_spread([a for a, _ in control])}; "
        f"higher on {sum(a > b for a, b in control)} of {len(control)} seeds."
    )


def _verdict(holds: bool) -> str:
    return "**holds**" if holds else "**does not hold**"


def _spread(values: list[float]) -> str:
    """Mean and range."""
    form = "{:g}" if all(isinstance(value, int) for value in values) else "{:.2f}"
    low, high = form.format(min(values)), form.format(max(values))
    return (
        f"{statistics.mean(values):.2f} ({low}-{high})"
        if form != "{:g}"
        else f"{statistics.median(values):g} ({low}-{high})"
    )


def show(path: Path) -> None:
    """Write the tables between their marks."""
    found = list(rows(path))
    spent = sum(each.get("seconds", 0.0) for each in found)
    last = f"{spent:.0f} CPU seconds for all of it, on one thread."
    between(RESULTS, "experts", "\n".join([*tables(found), last]))
    shown = path.with_name("experts_evidence.jsonl")
    shown.write_text("".join(json.dumps(each) + "\n" for each in evidence(found)), encoding="utf-8")
    print(RESULTS, shown)


def evidence(found: list[Row]) -> Iterator[Row]:
    """The points of the proof that each parted mixture met, for the table of docs/methods.md (see `tools/docs.py`)."""
    for seed in sorted({each["seed"] for each in found}):
        mine = {each["name"]: each for each in found if each["seed"] == seed and each["parted"]}
        held, uniform = mine[HELD], TOP / EXPERTS
        met = {
            "routing is specialised": mine["before"]["share"] >= 1.5 * uniform,
            "overlap": held["overlap"] >= 0.9 and held["overlap"] > mine[ONE]["overlap"],
            "retain above all weights'": held["retain"] > mine[ALL]["retain"],
            "one expert and router": held["trainable"] == mine["before"]["expert and router"],
            "more than a random expert": held["forget"] < mine[OTHER]["forget"],
        }
        method = "Finetune(objective=Ascent() + Anchor(), adapter=SEUF())"
        yield {"recipe": "experts", "method": method, "family": "mixture of experts", "seed": seed, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3, 4, 5])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "run":
        run(asked.file, asked.seeds, trials())
    else:
        show(asked.file)


if __name__ == "__main__":
    main()
