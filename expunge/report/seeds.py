"""Runs that differ in their seed alone: of each finding its mean, its spread and its worst, and every verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from expunge.core.audit import Finding
from expunge.report.answers import in_order
from expunge.report.report import Report

SCHEMA = 1
SEEDS = "seeds.json"
"""The file of the table, in the folder of the runs."""


@dataclass(frozen=True)
class Spread:
    """One audit on one set, over the runs: of the model after forgetting."""

    set: str
    audit: str
    before: float | None
    """Of the model before, in the first run."""
    values: tuple[float, ...]
    """After, in the order of the seeds."""
    mean: float
    deviation: float | None
    """Standard deviation between the runs (n - 1); None of one run."""
    worst: float | None
    """Farthest from the ideal, where there is one, else on the wrong side; None where neither is good."""
    ideal: float | None
    """In the first run."""


@dataclass(frozen=True)
class Seeds:
    """What several runs of one job came to."""

    schema: int
    method: str
    """Of the first run."""
    seeds: tuple[int, ...]
    verdicts: tuple[dict[str, str], ...]
    """What each run says of forgotten, traceless and unharmed; empty where it failed."""
    exits: tuple[int, ...]
    """The exit code that each run alone would have had."""
    findings: tuple[Spread, ...]


def gather(runs: Mapping[int, Report | None], exits: Mapping[int, int]) -> Seeds:
    """The table of the runs by their seeds; None is one that failed."""
    done = [report for report in runs.values() if report is not None]
    return Seeds(
        schema=SCHEMA,
        method=done[0].method if done else "",
        seeds=tuple(runs),
        verdicts=tuple({name: a.said for name, a in r.verdict or ()} if r is not None else {} for r in runs.values()),
        exits=tuple(exits[seed] for seed in runs),
        findings=tuple(_spreads(done)),
    )


def _spreads(reports: list[Report]) -> list[Spread]:
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in (f for report in reports for f in report.findings if f.model == "after"):
        found.setdefault((finding.set, finding.audit), []).append(finding)
    order = in_order(where for where, _ in found)
    first = {(f.set, f.audit): f.value for report in reports[:1] for f in report.findings if f.model == "before"}
    return [
        _spread(each, first.get(key)) for key, each in sorted(found.items(), key=lambda one: order.index(one[0][0]))
    ]


def _spread(each: list[Finding], before: float | None) -> Spread:
    values = [finding.value for finding in each]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    one = each[0]
    return Spread(
        one.set, one.audit, before, tuple(values), statistics.fmean(values), deviation, worst_of(each), one.ideal
    )


def worst_of(each: list[Finding]) -> float | None:
    """The value of the worst of some findings of one audit on one set."""
    if each[0].better == "ideal":
        known = [(abs(f.value - f.ideal), f.value) for f in each if f.ideal is not None]
        return max(known)[1] if known else None
    values = [finding.value for finding in each]
    return max(values) if each[0].better == "lower" else min(values)
