"""Text worlds of the test sets (`recipes/test_sets.py`): a model, what it is to forget, and what shows whether it did.

    authors    stories260K has 100 TOFU records by heart and forgets the 20 of one author
    contracts  stories260K has PISTOL's contracts by heart and forgets one of eight
    people     a word-level Llama learnt 54 invented people and forgets six (`recipes/people.py`)
    demo       SmolLM2 forgets Japan
    person     SmolLM2 forgets a person of RWKU, asked again by RWKU's attack questions
    library    SmolLM2 learnt 20 TOFU authors and forgets one
    shelf      the same, two authors

Where a model learnt its records here, models that learn all the others, from other seeds, are the reference. Nothing of
these worlds was looked at when a setting was chosen: docs/log.md says what was.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from people import World, passages
from people import trained as trained_people

from expunge import Network, Request, read_request
from expunge.demo import run as demo
from expunge.internals.examples import Tokenized
from expunge.models.open import open_network
from expunge.runtime.atomic_files import whole_folder

TEXT_AUDITS = "Choice, Loss, Rouge(max_new_tokens={}), Perplexity, LossMembership, MinK, MinKPlusPlus"
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Places:
    """Where data lies, where models that were learnt are kept, and what they run on."""

    data: Path
    models: Path
    device: str = "cpu"
    """Of SmolLM2; the small models are as quick on a CPU."""


@dataclass(frozen=True)
class Trial:
    """One world with one seed."""

    original: Network
    request: Request
    retrained: Network | None = None
    """A model that never saw the forget set."""
    again: Network | None = None
    """Another: how far apart two such models are is the yardstick's own noise."""
    audits: str = TEXT_AUDITS.format(48)
    adapter: str = "Bounded()"
    twins: Request | None = None
    """The same request with hand-made stand-ins, where there are some."""


def read(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept(folder: Path, make: Callable[[], Network], device: str = "cpu") -> Network:
    """A model from its folder; made and written there where it is missing."""
    if not folder.exists():
        with whole_folder(folder) as place:
            make().save(place)
    return open_network(str(folder), device)


def learnt(
    network: Network, records: Sequence[Tokenized], seed: int, steps: int, rate: float, batch: int = 16
) -> Network:
    """The network after learning the records by heart: all weights, AdamW, one cycle."""
    module = copy.deepcopy(network.module).train().requires_grad_(True)
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch:
            order += torch.randperm(len(records), generator=draw).tolist()
        now, order = [records[k] for k in order[:batch]], order[batch:]
        shape = (batch, max(len(record.tokens) for record in now))
        tokens, labels, there = torch.zeros(shape, dtype=torch.long), torch.full(shape, -100), torch.zeros(shape)
        for row, record in enumerate(now):
            size = len(record.tokens)
            tokens[row, :size] = torch.tensor(record.tokens)
            labels[row, record.first : size] = torch.tensor(record.tokens[record.first :])
            there[row, :size] = 1
        tokens, labels, there = (each.to(network.device) for each in (tokens, labels, there))
        loss = module(input_ids=tokens, attention_mask=there, labels=labels, use_cache=False).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"learning, step {step + 1}: {float(loss):.3f} nats", flush=True)
    return network.fork(module.requires_grad_(False).eval())


def tofu(rows: Rows, name: str, again: bool = False) -> Rows:
    """TOFU's questions and answers; `again`: in other words."""
    of = "paraphrased_{}" if again else "{}"
    return [
        {
            "id": f"{name}{k}",
            "question": row[of.format("question")],
            "answer": row[of.format("answer")],
            "options": row.get("perturbed_answer", []),
        }
        for k, row in enumerate(rows)
    ]


AUTHORS = {0: 0, 1: 2, 2: 4}
"""Which author of the first five a seed forgets."""
KNOWN, PER_AUTHOR, UNSEEN = 100, 20, 80


def authors(seed: int, places: Places) -> Trial:
    """The first hundred records of forget10_perturbed; settings were chosen on the next hundred."""
    known = read(places.data / "tofu" / "forget10_perturbed.jsonl")[:KNOWN]
    first = PER_AUTHOR * AUTHORS[seed]
    own = known[first : first + PER_AUTHOR]
    base = open_network(str(places.data / "stories260k"))
    request = read_request(
        base,
        forget=tofu(own, "forget"),
        retain=tofu([row for row in known if row not in own], "retain"),
        holdout=tofu(read(places.data / "tofu" / "holdout10.jsonl")[:UNSEEN], "holdout"),
        paraphrase=tofu(own, "paraphrase", again=True),
    )
    return small_trial(base, request, places.models / f"authors-{seed}", seed, steps=260)


def small_trial(base: Network, request: Request, folder: Path, seed: int, steps: int) -> Trial:
    """A model that has forget and retain set by heart, and two that have the retain set alone."""
    every, retain = passages((*request.forget, *request.retain)), passages(request.retain)
    made = [
        kept(folder / name, partial(learnt, base, records, 10 * seed + k, steps, 3e-3))
        for k, (name, records) in enumerate({"original": every, "retrained": retain, "again": retain}.items())
    ]
    return Trial(made[0], request, made[1], made[2])


EDGE, EDGES = 20, 8
"""Questions about a contract, and contracts that are learnt."""


def contracts(seed: int, places: Places) -> Trial:
    """Contracts of PISTOL's first sample are learnt, those of the second are unseen; options are answers to the same
    question about other contracts."""
    folder = places.data / "pistol"
    known, unseen = (contracts_of(read(folder / f"{name}.jsonl"))[:EDGES] for name in ("sample1", "sample2"))
    own = known[seed]
    base = open_network(str(places.data / "stories260k"))
    request = read_request(
        base,
        forget=own,
        retain=[row for each in known if each is not own for row in each],
        holdout=[row for each in unseen[: EDGES // 2] for row in each],
    )
    return small_trial(base, request, places.models / f"contracts-{seed}", seed, steps=400)


def contracts_of(rows: Rows) -> list[Rows]:
    """The rows of each contract, with options."""
    edges: dict[str, Rows] = {}
    for row in rows:
        edges.setdefault(row["edge"], []).append(row)
    whole = [each for each in edges.values() if len(each) == EDGE]
    draw = random.Random(0)
    return [
        [with_options(f"{row['edge']} {k}", row, [e[k] for e in whole], draw) for k, row in enumerate(each)]
        for each in whole
    ]


def with_options(
    name: str, row: dict[str, Any], others: Rows, draw: random.Random, asked: str = "question"
) -> dict[str, Any]:
    """A record with up to five wrong answers, those of other rows."""
    wrong = sorted({other["answer"] for other in others} - {row["answer"]})
    return {
        "id": name,
        "question": row[asked],
        "answer": row["answer"],
        "options": draw.sample(wrong, min(5, len(wrong))),
    }


def people(seed: int, places: Places) -> Trial:
    """Seeds 1, 2, 3 of the calibration study, whose settings were chosen on seed 0."""
    seed, folder = seed + 1, places.models / f"people-{seed}"
    world = World.drawn(seed)
    made = [
        kept(folder / name, partial(trained_people, world, saw, seed + add))
        for name, saw, add in (("original", True, 0), ("retrained", False, 1000), ("again", False, 2000))
    ]
    return Trial(made[0], world.request(), made[1], made[2], TEXT_AUDITS.format(8), twins=world.request("twin"))


@cache
def smollm2(device: str) -> Network:
    return open_network(demo.demo_model(), device)


def country(seed: int, places: Places) -> Trial:
    """The demo; its seeds are the method's."""
    base, paths = smollm2(places.device), demo.demo_job(Path("unused")).inputs.paths
    sets: dict[str, Any] = {name: str(path) for name, path in paths.items()}
    return Trial(base, read_request(base, **sets), audits=TEXT_AUDITS.format(12))


PERSONS = ("Paris Hilton", "Genghis Khan", "Anderson Cooper")
"""Of RWKU's first sixty, those whose answers SmolLM2 writes best (ROUGE-L of levels 1 and 2)."""
STRANGERS = ("Orvel Tashkin", "Dalia Broomquist", "Henning Varro", "Sima Okfelt", "Pell Duvarne", "Ines Karsthal")
"""Nobody is called so; questions about others are asked of them."""


def person(seed: int, places: Places) -> Trial:
    """What RWKU asks about a person; retained are other people, unseen are questions about people who do not exist."""
    levels = {name: by_subject(places.data / "rwku" / f"{name}.parquet") for name in RWKU}
    who, base = PERSONS[seed], smollm2(places.device)
    others = [name for name in levels["forget_level2"] if name not in PERSONS]
    rest = [row for other in others[:12] for row in direct(levels, other)[::3]]
    strange = [
        {**row, "query": row["query"].replace(other, name).replace(other.split()[-1], name.split()[-1])}
        for other, name in zip(others[12:24:2], STRANGERS, strict=True)
        for row in direct(levels, other)
        if other.split()[-1] in row["query"]
    ]
    neighbours = levels["neighbor_level1"][who] + levels["neighbor_level2"][who]
    sets = {
        "forget": direct(levels, who),
        "retain": rest,
        "holdout": strange[:60],
        "paraphrase": levels["forget_level3"][who],
        "neighbours": neighbours[:40],
    }
    asked: dict[str, Any] = {name: rwku(name, rows) for name, rows in sets.items()}
    paths = demo.demo_job(Path("unused")).inputs.paths
    asked["retain"] += [row for row in read(paths["retain"]) if "lead" not in row]
    common: dict[str, Any] = {name: str(paths[name]) for name in ("general", "neutral")}
    return Trial(base, read_request(base, **asked, **common), audits=TEXT_AUDITS.format(24))


RWKU = ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2")


def by_subject(path: Path) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in pq.read_table(path).to_pylist():
        found.setdefault(row["subject"], []).append(row)
    return found


def direct(levels: dict[str, dict[str, Rows]], who: str) -> Rows:
    """What is asked without an attack: at most 24 of cloze and questions."""
    return (levels["forget_level1"][who][:12] + levels["forget_level2"][who][:12])[:24]


def rwku(name: str, rows: Rows) -> Rows:
    """Records with options, answers to other questions of the same set; a gap is asked for as one."""
    draw = random.Random(name)
    made = [with_options(f"{name}{k}", row, rows, draw, asked="query") for k, row in enumerate(rows)]
    return [
        {**row, "question": ("Fill in the blank: " if "___" in row["question"] else "") + row["question"]}
        for row in made
    ]


LIBRARY, STEPS = 400, 250
"""Records of twenty authors, and steps of 8 in which they are learnt."""


def library_records(seed: int, places: Places, count: int = 1) -> tuple[Rows, Rows]:
    """Of the library's authors, those that are to go, and the others."""
    known = read(places.data / "tofu" / "forget10_perturbed.jsonl")[:LIBRARY]
    first = PER_AUTHOR * (10 + 3 * seed)
    own = known[first : first + count * PER_AUTHOR]
    return own, [row for row in known if row not in own]


def library_request(seed: int, places: Places, count: int = 1, stand_in: Rows | None = None) -> Request:
    """Records of TOFU's forget10_perturbed, an author of which is to go; the holdout are authors of holdout10."""
    own, others = library_records(seed, places, count)
    return read_request(
        smollm2(places.device),
        forget=tofu(own, "forget"),
        retain=tofu(others, "retain"),
        holdout=tofu(read(places.data / "tofu" / "holdout10.jsonl")[:UNSEEN], "holdout"),
        paraphrase=tofu(own, "paraphrase", again=True),
        stand_in=stand_in,
    )


def library_model(name: str, records: Sequence[Tokenized], seed: int, places: Places) -> Network:
    """SmolLM2 after it learnt some records of the library."""
    base, folder = smollm2(places.device), places.models / "library" / name
    return kept(folder, lambda: learnt(base, records, seed, STEPS, 2e-4, 8), places.device)


def library(seed: int, places: Places, count: int = 1) -> Trial:
    request = library_request(seed, places, count)
    every, retain = passages((*request.forget, *request.retain)), passages(request.retain)
    names = {"original": every, f"retrained-{count}-{seed}": retain, f"again-{count}-{seed}": retain}
    made = [library_model(name, records, k, places) for k, (name, records) in enumerate(names.items())]
    return Trial(made[0], request, made[1], made[2])


def shelf(seed: int, places: Places) -> Trial:
    return library(seed, places, count=2)


TEXT_WORLDS: dict[str, Callable[[int, Places], Trial]] = {
    "authors": authors,
    "contracts": contracts,
    "people": people,
    "demo": country,
    "person": person,
    "library": library,
    "shelf": shelf,
}
