"""The numbers of forgetting pictures, each made of values that were measured picture by picture.

Several definitions of how far something is forgotten, and of what is left, are in use; all are given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from statistics import fmean

from expunge.benchmarks._numbers import Number, mean
from expunge.benchmarks._pictures import BUDGETS
from expunge.benchmarks._values import Values
from expunge.primitives.attackers import attack_confidence, attack_entropy
from expunge.primitives.statistics import first_reaching, harmonic_mean, ks

BEFORE = ("original", "before")
"""References that the model was made from: before all requests, and before the last of several."""
NEAR = 0.05
"""How near to its accuracy before a class has to come to be relearnt."""
SALUN = ("UA", "RA", "TA", "MIA efficacy")
"""Of these SalUn's gap is the mean."""


def of_model(values: Values) -> Iterator[Number]:
    """The numbers of a model alone."""
    for where in values.sets():
        if values.has(where, "right"):
            told = f"Share of pictures of the set '{where}' that are named right."
            yield mean("accuracy", where, values.of(where, "right"), told)
    found = salun(values)
    n = len(values.of("forget", "right"))
    yield Number("UA", "forget", found["UA"], n, "Unlearning accuracy: 1 less the accuracy on the forgotten pictures.")
    if values.has("forget test", "right"):
        wrong = [1 - right for right in values.of("forget test", "right")]
        told = "Forget quality as 1 less the accuracy on test pictures of what was forgotten."
        yield mean("forget quality", "forget test", wrong, told)
    told = "Share of forgotten pictures that a support vector machine on the right class's probability calls unseen."
    yield Number("MIA efficacy", "forget", found["MIA efficacy"], n, told)
    called = attack_entropy(*(values.of(where, "entropy") for where in ("retain", "test", "forget")))
    told = "Share of forgotten pictures that a logistic regression on the answer's entropy calls trained on."
    yield mean("called members", "forget", called, told)
    if values.has("forget test", "probe"):
        told = "Share of test pictures of what was forgotten whose class a linear probe of the last features tells."
        yield mean("linear probe", "forget test", values.of("forget test", "probe"), told)
    if values.has("run", "seconds"):
        yield Number("seconds", "run", values.of("run", "seconds")[0], 1, "Wall-clock seconds of forgetting.")


def salun(values: Values) -> dict[str, float]:
    """The four numbers that SalUn's gap is made of."""
    confidences = ([math.exp(-loss) for loss in values.of(where, "loss")] for where in ("retain", "test", "forget"))
    found = {
        "UA": 1 - fmean(values.of("forget", "right")),
        "RA": fmean(values.of("retain", "right")),
        "TA": fmean(values.of("test", "right")),
        "MIA efficacy": 1 - fmean(attack_confidence(*confidences)),
    }
    return {name: found[name] for name in SALUN}


def against_model(values: Values, reference: Values, name: str) -> Iterator[Number]:
    """The numbers against a model that never saw the forgotten, or against the one that this was made from."""
    yield from (_since if name in BEFORE else _apart)(values, reference, name)


def _since(values: Values, before: Values, name: str) -> Iterator[Number]:
    where = "forget test" if values.has("forget test", "right") else "forget"
    drop = fmean(before.of(where, "right")) - fmean(values.of(where, "right"))
    left, was = (fmean(each.of("test", "right")) for each in (values, before))
    n = len(values.of(where, "right"))
    told = f"Harmonic mean of test accuracy and of the fall of accuracy on '{where}' since the model {name} (GS-LoRA)."
    yield Number("H-mean", "all", harmonic_mean([left, drop]) if drop > 0 else 0.0, n, told, against=name)
    told = f"Test accuracy over that of the model {name}."
    yield Number("relative test accuracy", "test", left / was if was else None, n, told, against=name)
    if values.has("forget", f"right after {BUDGETS[0]}"):
        level = fmean(before.of("forget", "right")) - NEAR
        curve = [fmean(values.of("forget", f"right after {steps}")) for steps in BUDGETS]
        steps = first_reaching(BUDGETS, curve, level)
        told = (
            f"Steps of training on half of the forgotten pictures after which the other half is named as well as by "
            f"the model {name}, less {NEAR:g}; of {', '.join(map(str, BUDGETS))}. None: more."
        )
        yield Number("relearn steps", "forget", steps, n, told, against=name)


def _apart(values: Values, reference: Values, name: str) -> Iterator[Number]:
    ours, theirs = salun(values), salun(reference)
    n = len(values.of("forget", "right"))
    gap = fmean(abs(ours[each] - theirs[each]) for each in SALUN)
    told = f"Mean distance of {', '.join(SALUN)} from {name} (RA, TA: accuracy on retain and test)."
    yield Number("average gap", "all", gap, n, told, against=name)
    for where in ("forget", "forget test"):
        if values.has(where, "loss") and reference.has(where, "loss"):
            told = f"p of the two-sample Kolmogorov-Smirnov test of losses on '{where}' against {name}'s."
            shift = ks(values.of(where, "loss"), reference.of(where, "loss"))
            yield Number("KS p", where, shift.p, n, told, against=name)
    if values.has("run", "seconds") and reference.has("run", "seconds"):
        told = f"Seconds of forgetting over those of training {name}."
        share = values.of("run", "seconds")[0] / reference.of("run", "seconds")[0]
        yield Number("share of retraining's time", "run", share, 1, told, against=name)


def numbers(values: Values, references: Mapping[str, Values]) -> list[Number]:
    """All of them."""
    found = list(of_model(values))
    for name, reference in references.items():
        found += against_model(values, reference, name)
    return found
