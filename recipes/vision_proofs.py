"""Vision methods put to proof on 5,000 handwritten digits, with controls and the model retrained.

    OMP_NUM_THREADS=1 python recipes/vision_proofs.py run docs/vision_proofs.jsonl      makes the rows that are missing
    python recipes/vision_proofs.py show docs/vision_proofs.jsonl docs/results.md       writes the tables between marks

The bounds were set beforehand, on other seeds and other code. What reads no label is given drawn ones here. Every model
is trained on the spot (`recipes/mnist.py`); a retrained one has a seed of its own. Seeds 100 and 101, on which LAF's
defaults were chosen, stand in no table. All accuracies are percent.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from mnist import CLASSES, Mnist, accuracy, cnn, small_vit, trained
from sklearn.linear_model import LogisticRegression

from expunge import Adapted, Finetune, LogProbabilities, Model, Network, Request, Scores, Stop
from expunge.adapters.lora import LoRA
from expunge.core.objective import Objective
from expunge.data.images import Picture
from expunge.edit._dampen import dampen, everything
from expunge.edit._fisher import copy_network, mean_squared_gradient
from expunge.edit.gradient_norm import GradientNorm
from expunge.edit.iau import IAU
from expunge.edit.lfssd import LFSSD
from expunge.edit.ssd import SSD
from expunge.events import Edited, Event, ignore_event
from expunge.internals.gradients import Gradient, gradient, loss
from expunge.internals.representation import represent
from expunge.methods.laf import LAF
from expunge.objectives.gs_lora import GSLoRA
from expunge.objectives.gs_lora_plus import GSLoRAPlus
from expunge.objectives.retain_nll import RetainNLL

CLASS_SEEDS, RANDOM_SEEDS, VIT_SEEDS = (11, 12), (11, 12, 13), (11, 12)
FORGOTTEN = (0, 3, 8)
ALPHAS = (1, 2, 5, 10, 25, 50)
VALIDATION = 400
"""Pictures of the test part by which SSD's alpha is chosen; its retain accuracy is measured on the others."""
OTHER = 1000
"""Added to a seed: that of the model retrained."""
Pictures = Sequence[Picture]
Row = dict[str, Any]


def mislabelled(pictures: Pictures, seed: int) -> tuple[Picture, ...]:
    """The same pictures with labels that were drawn."""
    draw = random.Random(seed)
    return tuple(replace(picture, label=draw.randrange(CLASSES)) for picture in pictures)


def of(pictures: Pictures, *classes: int) -> list[Picture]:
    return [picture for picture in pictures if picture.label in classes]


def without(pictures: Pictures, *classes: int) -> list[Picture]:
    return [picture for picture in pictures if picture.label not in classes]


def percent(network: Network, pictures: Pictures) -> float:
    return 100 * accuracy(network, pictures)


def entropies(network: Network, pictures: Pictures) -> torch.Tensor:
    """Nats of each picture's answer."""
    with torch.inference_mode():
        said = network.ask(Scores(), pictures).log_probs()
    return -(said.exp() * said).sum(1)[:, None]


def members(network: Network, forget: Pictures, retain: Pictures, test: Pictures) -> float:
    """Percent of the forget set that an attacker takes for training data, by a balanced logistic regression on the
    entropy of answers to the retain set and to the test part."""
    known = torch.cat([entropies(network, retain), entropies(network, test)])
    attack = LogisticRegression(class_weight="balanced")
    attack.fit(known.numpy(), [1] * len(retain) + [0] * len(test))
    return 100 * float(attack.predict(entropies(network, forget).numpy()).mean())


def probed(network: Network, digits: Mnist, *classes: int) -> float:
    """Percent of the classes' test pictures that a linear probe of the representation puts into the right class; it
    learns from 1,000 training pictures of all classes."""
    with torch.no_grad():
        seen, asked = (represent(network, part) for part in (digits.train[:1000], of(digits.test, *classes)))
    mean, deviation = seen.mean(0), seen.std(0) + 1e-6
    probe = LogisticRegression(max_iter=300)
    probe.fit(((seen - mean) / deviation).numpy(), [picture.label for picture in digits.train[:1000]])
    right = [picture.label for picture in of(digits.test, *classes)]
    return 100 * float(probe.score(((asked - mean) / deviation).numpy(), right))


@cache
def original(seed: int) -> tuple[Network, float]:
    """The CNN trained on everything, and how long it took."""
    return timed(lambda: trained(cnn(seed), Mnist.load().train, seed))


def timed(make: Callable[[], Model]) -> tuple[Any, float]:
    start = time.process_time()
    return make(), time.process_time() - start


def edited(events: Sequence[Event]) -> Edited:
    """What an edit said at its end."""
    return next(event for event in reversed(events) if isinstance(event, Edited))


# A class: SSD, LFSSD, LAF


def a_class(digits: Mnist, seed: int, gone: int) -> Iterator[Row]:
    """One class forgotten by all that can, beside the model retrained without it."""
    forget, retain = of(digits.train, gone), without(digits.train, gone)
    request = Request(tuple(forget), tuple(retain))
    blind = Request(mislabelled(forget, seed), mislabelled(retain, seed + 1))
    kept, chosen_by = without(digits.test[VALIDATION:], gone), without(digits.test[:VALIDATION], gone)

    def row(name: str, network: Network, seconds: float, **more: Any) -> Row:
        return {
            "model": name,
            "forget": percent(network, of(digits.test, gone)),
            "retain": percent(network, without(digits.test, gone)),
            "kept": percent(network, kept),
            "chosen_by": percent(network, chosen_by),
            "mia": members(network, forget, retain[: len(digits.test)], digits.test),
            "probe": None if name.startswith("SSD") else probed(network, digits, gone),
            "seconds": seconds,
            **more,
        }

    before, seconds = original(seed)
    yield row("original", before, seconds)
    yield row("retrained", *timed(lambda: trained(cnn(seed + OTHER), retain, seed + OTHER)))
    events: list[Event] = []
    result, seconds = timed(lambda: LFSSD()(before, blind, events.append))
    yield row("LFSSD", result, seconds, alpha=edited(events).alpha)
    start = time.process_time()
    whole, part = (mean_squared_gradient(before, some, 64) for some in (everything(request, "SSD"), request.forget))
    passes = time.process_time() - start
    for alpha in ALPHAS:
        result = dampen(before, part, whole, alpha, 1.0, ignore_event)
        yield row(f"SSD {alpha}", result, passes)
    yield row("LAF", *timed(lambda: LAF(seed=seed)(before, blind)))


# Pictures at random: IAU, and what dampening does there


def moved(network: Network, slope: Gradient, rate: float) -> Network:
    """A step of one size for every number, against the sign of its slope."""
    result = copy_network(network)
    with torch.no_grad():
        for name, parameter in result.module.named_parameters():
            parameter.sub_(rate * slope[name].sign())
    return result


def at_random(digits: Mnist, seed: int) -> Iterator[Row]:
    """5 % of the training pictures forgotten by one step, beside steps of the same size that know less."""
    order = torch.randperm(len(digits.train), generator=torch.Generator().manual_seed(seed)).tolist()
    forget, retain = ([digits.train[k] for k in part] for part in (order[:200], order[200:]))
    request = Request(tuple(forget), tuple(retain))

    def row(name: str, network: Network, seconds: float, **more: Any) -> Row:
        lost = -float(network.ask(LogProbabilities(), forget).log_probs.double().mean())
        values = {"forget": percent(network, forget), "loss": lost, "test": percent(network, digits.test)}
        return {"model": name, **values, "seconds": seconds, **more}

    before, seconds = original(seed)
    yield row("original", before, seconds)
    yield row("retrained", *timed(lambda: trained(cnn(seed + OTHER), retain, seed + OTHER)))
    yield row("IAU", *timed(lambda: IAU()(before, request)))
    draw = torch.Generator().manual_seed(seed)
    chance = {n: torch.randn(p.shape, generator=draw) for n, p in before.module.named_parameters()}
    yield row("random signs", *timed(lambda: moved(before, chance, 1e-3)))
    yield row("retain gradient alone", *timed(lambda: moved(before, gradient(before, loss, (1.0, retain)), 1e-3)))
    yield row("IAU 3e-3", *timed(lambda: IAU(learning_rate=3e-3)(before, request)))
    yield row("IAU 3e-3, no correction", *timed(lambda: IAU(learning_rate=3e-3, correction=0.0)(before, request)))
    restricted, seconds = timed(
        lambda: trained(cnn(seed), digits.train, seed, objective=RetainNLL() + 0.005 * GradientNorm())
    )
    yield row("original, restricted", restricted, seconds)
    yield row("restricted, IAU", *timed(lambda: IAU()(restricted, request)))
    for method in (SSD(alpha=10.0), SSD(alpha=2.0), LFSSD()):
        events: list[Event] = []
        result, seconds = timed(partial(method, before, request, events.append))
        edit = edited(events)
        assert edit.selected is not None
        yield row(repr(method), result, seconds, selected=100 * edit.selected / edit.parameters)


# Wrong labels: LAF


def wrong_labels(digits: Mnist, seed: int) -> Iterator[Row]:
    """A fifth of the labels flipped; the flipped ones are to be forgotten, and test accuracy is to rise."""
    draw = random.Random(seed)
    flipped = set(draw.sample(range(len(digits.train)), len(digits.train) // 5))
    train = [
        replace(p, label=(p.label + draw.randrange(1, CLASSES)) % CLASSES) if k in flipped else p
        for k, p in enumerate(digits.train)
    ]
    forget, retain = [train[k] for k in sorted(flipped)], [p for k, p in enumerate(train) if k not in flipped]
    blind = Request(mislabelled(forget, seed), mislabelled(retain, seed + 1))

    def row(name: str, network: Network, seconds: float) -> Row:
        wrong = percent(network, forget)
        return {"model": name, "wrong": wrong, "test": percent(network, digits.test), "seconds": seconds}

    before, seconds = timed(lambda: trained(cnn(seed), train, seed))
    yield row("original", before, seconds)
    yield row("retrained", *timed(lambda: trained(cnn(seed + OTHER), retain, seed + OTHER)))
    yield row("LAF", *timed(lambda: LAF(seed=seed)(before, blind)))


# Class after class: GS-LoRA

RATES = {"beta": 0.2, "bound": 10.0}
PLUS = {"weight": 0.1, "prototype_bound": 18.0}
FULL, SHOTS = 340, 200
"""Steps of a task: 20 epochs of 800 pictures in batches of 48; with four pictures a class, 100 epochs of 8 by 4."""
VARIANTS: dict[str, tuple[int, Callable[[float], Objective]]] = {
    "GS-LoRA": (FULL, lambda warmup: GSLoRA(alpha=0.03, warmup=warmup, **RATES)),
    "GS-LoRA, alpha 0": (FULL, lambda warmup: GSLoRA(alpha=0.0, **RATES)),
    "GS-LoRA++": (FULL, lambda warmup: GSLoRAPlus(alpha=0.03, warmup=warmup, **RATES, **PLUS)),
    "GS-LoRA, 4 a class": (SHOTS, lambda warmup: GSLoRA(alpha=0.03, warmup=warmup, **RATES)),
    "GS-LoRA++, 4 a class": (SHOTS, lambda warmup: GSLoRAPlus(alpha=0.03, warmup=warmup, **RATES, **PLUS)),
}


def in_turn(digits: Mnist, seed: int) -> Iterator[Row]:
    """Three tasks of two classes each, one after the other."""
    order = random.Random(seed).sample(range(CLASSES), 6)
    whole, seconds = timed(lambda: trained(small_vit(seed), digits.train, seed, epochs=25))
    yield {"model": "original", **_end(whole, digits, order), "seconds": seconds}
    rest = without(digits.train, *order)
    again, seconds = timed(lambda: trained(small_vit(seed + OTHER), rest, seed + OTHER, epochs=25))
    yield {"model": "retrained", **_end(again, digits, order), "seconds": seconds}
    for name, (steps, objective) in VARIANTS.items():
        network: Network = whole
        for task in range(3):
            classes, earlier = order[2 * task : 2 * task + 2], order[: 2 * task]
            request = _replayed(digits, classes, earlier, steps == SHOTS, seed)
            before = network
            passes = steps // 5 * (4 if steps == SHOTS else 48) / len(request.forget)  # a fifth of the run
            method = _method(objective(passes), steps, seed)
            adapted, seconds = timed(partial(method, before, request))
            network = adapted.plain()
            rest = without(digits.test, *classes, *earlier)
            yield {
                "model": name,
                "task": task + 1,
                "forget_before": percent(before, of(digits.test, *classes)),
                "forget": percent(network, of(digits.test, *classes)),
                "retain_before": percent(before, rest),
                "retain": percent(network, rest),
                "earlier": percent(network, of(digits.test, *earlier)) if earlier else 0.0,
                "norms": _norms(adapted),
                "share": 100 * sum(p.numel() for p in adapted.inner.trainable().values()) / _size(whole),
                "seconds": seconds,
            }
        yield {"model": f"{name}, end", **_end(network, digits, order)}


def _end(network: Network, digits: Mnist, order: Sequence[int]) -> Row:
    """What the forgotten classes and the others are after all tasks."""
    gone, rest = of(digits.test, *order), without(digits.test, *order)
    return {
        "forget": percent(network, gone),
        "retain": percent(network, rest),
        "probe": probed(network, digits, *order),
    }


def _replayed(digits: Mnist, classes: Sequence[int], earlier: Sequence[int], few: bool, seed: int) -> Request:
    """The two classes, and a tenth of what is to be kept; or four pictures of every class."""
    draw = random.Random(seed)
    others = [c for c in range(CLASSES) if c not in (*classes, *earlier)]
    forget, retain = ([of(digits.train, c) for c in some] for some in (classes, others))
    if few:
        forget, retain = ([draw.sample(part, 4) for part in parts] for parts in (forget, retain))
    else:
        retain = [draw.sample(part, len(part) // 10) for part in retain]
    return Request(tuple(sum(forget, [])), tuple(sum(retain, [])))


def _method(objective: Objective, steps: int, seed: int) -> Finetune:
    few = steps == SHOTS
    return Finetune(
        objective=objective,
        adapter=LoRA(rank=8, targets="mlp"),
        learning_rate=1e-2,
        steps=steps,
        batch=4 if few else 48,
        retain_batch=16 if few else 48,
        schedule="cosine",
        weight_decay=0.05,
        stop=Stop(level=None, max_retain_increase=None, every=steps),
        seed=seed,
        norms=False,
    )


def _norms(adapted: Adapted) -> list[float]:
    """Of each block, the Frobenius norm of all its adapter's matrices together."""
    squares: dict[str, float] = {}
    for name, weight in adapted.inner.trainable().items():
        block = next(part for part in name.split(".") if part.isdigit())
        squares[block] = squares.get(block, 0.0) + float(weight.detach().square().sum())
    return [square**0.5 for square in squares.values()]


def _size(network: Network) -> int:
    return sum(p.numel() for p in network.module.parameters())


# Rows


def groups(digits: Mnist) -> Iterator[tuple[Row, Iterator[Row]]]:
    """What is measured together, and what makes its rows."""
    for seed in RANDOM_SEEDS:
        yield {"proof": "random", "seed": seed}, at_random(digits, seed)
    for seed in VIT_SEEDS:
        yield {"proof": "in turn", "seed": seed}, in_turn(digits, seed)
    for seed in CLASS_SEEDS:
        for gone in FORGOTTEN:
            yield {"proof": "class", "seed": seed, "class": gone}, a_class(digits, seed, gone)
    for seed in CLASS_SEEDS:
        yield {"proof": "labels", "seed": seed}, wrong_labels(digits, seed)


def run(path: Path, only: str | None, seed: int | None) -> None:
    """Measure every group that the file lacks, or those of one proof or seed; a group is written whole."""
    digits = Mnist.load()
    done = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for key, rows in groups(digits):
        wanted = only in (None, key["proof"]) and seed in (None, key["seed"])
        if wanted and not any(key.items() <= row.items() for row in done):
            made = "".join(json.dumps({**key, **row}) + "\n" for row in rows)
            with path.open("a", encoding="utf-8") as file:
                file.write(made)
            print(made, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--only", choices=["random", "in turn", "class", "labels"])
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "run":
        run(asked.rows, asked.only, asked.seed)
    else:
        from vision_tables import write

        write(asked.rows, asked.page)


if __name__ == "__main__":
    main()
