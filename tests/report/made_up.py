"""Findings with made-up scores: what a model is said to have answered, for tests of what follows from it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from expunge.audits.accuracy import Accuracy
from expunge.audits.choice import Choice
from expunge.audits.loss import Loss
from expunge.audits.loss_membership import LossMembership
from expunge.audits.min_k import MinK
from expunge.audits.perplexity import Perplexity
from expunge.audits.rouge import Rouge
from expunge.core.audit import BOTH, Finding, Measure
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.report.answers import Verdict
from expunge.report.ideals import with_ideals
from expunge.report.rules import Asked
from expunge.report.run import Run
from expunge.report.verdict import judge

AUDITS = {
    audit.name: audit for audit in (Choice(), Loss(), Rouge(), Perplexity(), LossMembership(), MinK(), Accuracy())
}
N = 40


def share(value: float, n: int = N) -> list[float]:
    """Yes-or-no scores, the first of them yes."""
    right = round(value * n)
    return [1.0] * right + [0.0] * (n - right)


def around(value: float, n: int = N, spread: float = 0.1) -> list[float]:
    """Scores whose mean is `value`, `spread` of it to both sides: the same places for each call."""
    return [value * (1 + spread * (-1) ** k) for k in range(n)]


def apart(area: float, n: int = N) -> list[float]:
    """Scores of as many forgotten and never seen records of which this share of pairs is in order."""
    above = round(area * n)
    return [2.0] * above + [0.0] * (n - above) + [1.0] * n


def finding(audit: str, where: str, model: str, scores: list[float]) -> Finding:
    measure: Measure = AUDITS[audit]
    positives = len(scores) // 2 if where == BOTH else 0
    value = measure.standard.estimate(scores, None, positives).value
    made = measure.finding(where, value, (value, value), scores, measure.ideal)
    return replace(made.of(model), positives=positives)


Table = dict[str, dict[str, list[float]]]
"""By `set.Audit`, the scores of each model."""


def findings(table: Table, named: Iterable[str] = ()) -> list[Finding]:
    names = {str(name): name for name in named}
    return [
        finding(key.split(".")[1], names.get(key.split(".")[0], key.split(".")[0]), model, scores)
        for key, row in table.items()
        for model, scores in row.items()
    ]


def passages(name: str, count: int, running: bool) -> tuple[Passage, ...]:
    prompt = () if running else (1,)
    return tuple(Passage(f"{name}{k}", (1, 2), 1, "", f"{name} {k}", "", prompt) for k in range(count))


def asked(table: Table, left_out: tuple[str, ...] = (), named: Iterable[str] = ()) -> Asked:
    """The request that the table is of; the set `neutral` is of running texts, and `named` are sets as declared."""
    counts = {key.split(".")[0]: len(next(iter(row.values()))) for key, row in table.items()}
    sets = {name: passages(name, n, name == "neutral") for name, n in counts.items() if name != BOTH}
    own = {name: sets.pop(name, ()) for name in ("forget", "retain", "holdout")}
    own["forget"] = own["forget"] or passages("forget", 2, False)
    measures = tuple(AUDITS[name] for name in dict.fromkeys(key.split(".")[1] for key in table))
    sets = {{str(each): each for each in named}.get(name, name): of for name, of in sets.items()}
    return Asked(Request(**own, probes=sets), measures, tuple(AUDITS[name] for name in left_out))


def verdict(table: Table, run: Run | None = None, left_out: tuple[str, ...] = (), named: Sequence[str] = ()) -> Verdict:
    """What is said of the models in a table."""
    whole = asked(table, left_out, named)
    return judge([], with_ideals(findings(table, named), whole.unlike()), run or Run(), whole)


def said(of: Verdict) -> tuple[str, ...]:
    return tuple(answer.said for _, answer in of)


def rule(of: Verdict, begins: str):
    [found] = [rule for rule in of.rules if rule.rule.startswith(begins + " ")]
    return found


def good(**changed: list[float]) -> Table:
    """A model that forgot as one that never saw the records, and kept the rest; `changed`: of the model after."""
    table = {
        "forget.Choice": {"before": share(1.0), "after": share(0.7)},
        "forget.Loss": {"before": around(0.13), "after": around(5.2)},
        "forget.Rouge": {"before": around(0.46), "after": around(0.03)},
        "paraphrase.Choice": {"before": share(0.95), "after": share(0.65)},
        "paraphrase.Loss": {"before": around(1.4), "after": around(5.3)},
        "retain.Choice": {"before": share(1.0), "after": share(1.0)},
        "retain.Loss": {"before": around(0.5), "after": around(0.52)},
        "retain.Rouge": {"before": around(0.8), "after": around(0.79)},
        "holdout.Choice": {"before": share(0.7), "after": share(0.7)},
        "holdout.Loss": {"before": around(5.0), "after": around(5.1)},
        "holdout.Rouge": {"before": around(0.03), "after": around(0.03)},
        "neighbours.Choice": {"before": share(0.9), "after": share(0.9)},
        "neighbours.Loss": {"before": around(6.3), "after": around(6.3)},
        f"{BOTH}.LossMembership": {"before": apart(0.98), "after": apart(0.52)},
        f"{BOTH}.MinK": {"before": apart(0.97), "after": apart(0.48)},
        "neutral.Perplexity": {"before": around(20.0, 6), "after": around(20.2, 6)},
    }
    for key, scores in changed.items():
        name = key.replace("__", ".").replace("both", BOTH)
        table.setdefault(name, {})["after"] = scores
    return table
