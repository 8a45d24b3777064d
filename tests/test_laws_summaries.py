"""Laws that every summary keeps: it adds findings of its own, of what it says that it reads, and nothing else."""

import random

import pytest

from expunge.core.audit import Finding, Summary
from expunge.notation.parse import Plugin, plugins
from tests.families import made

SUMMARY = pytest.mark.parametrize("plugin", [p for p in plugins() if p.folder == "summaries"], ids=lambda p: p.name)


def findings(audits: tuple[str, ...], models: tuple[str, ...] = ("before", "after", "reference")) -> list[Finding]:
    """Numbers of each audit on each set, drawn."""
    draw = random.Random(0)
    found = []
    for audit in audits:
        for where in ("forget", "paraphrase", "retain", "forget vs holdout"):
            for model in models:
                scores = tuple(draw.random() for _ in range(8))
                value = sum(scores) / 8
                found.append(
                    Finding(audit, where, value, value - 0.1, value + 0.1, 8, "drawn", model=model, scores=scores)
                )
    return found


@SUMMARY
def test_a_summary_makes_findings_of_its_own_name_with_their_definition_and_interval(plugin: Plugin):
    summary = made(plugin, Summary)
    found = summary(findings(summary.reads))
    assert found
    for finding in found:
        assert finding.audit == plugin.name
        assert finding.definition == summary.definition.strip() != ""
        assert finding.low <= finding.value <= finding.high
        assert finding.better == summary.good(finding.set, finding.ideal)


@SUMMARY
def test_a_summary_reads_only_what_it_says(plugin: Plugin):
    summary = made(plugin, Summary)
    assert summary.reads
    own = findings(summary.reads)
    assert summary([*findings(("Another",)), *own]) == summary(own)
    assert summary([]) == summary(findings(("Another",))) == ()


@SUMMARY
def test_a_summary_that_compares_needs_a_reference(plugin: Plugin):
    summary = made(plugin, Summary)
    alone = summary(findings(summary.reads, ("before", "after")))
    assert bool(alone) is not summary.compares
    assert summary.can_read(summary.reads, referenced=True)
    assert summary.can_read(summary.reads, referenced=False) is not summary.compares


@SUMMARY
def test_the_order_of_findings_does_not_matter_to_a_summary(plugin: Plugin):
    summary = made(plugin, Summary)
    own = findings(summary.reads)
    assert set(summary(own[::-1])) == set(summary(own))
