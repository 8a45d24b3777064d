"""A finished job as a program reads it: what `--json` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.errors import THRESHOLDS_MISSED
from expunge.notation.typed_json import to_json
from expunge.report.report import Report

SCHEMA = 1
"""Raised when a key changes its meaning."""
BIG = ("scores", "weights", "definition")
"""What report.json has of a finding and a summary leaves out."""


def summarise(report: Report, out: Path) -> dict[str, Any]:
    """Answers, findings and cost; no text of a record, and no score of a single one."""
    findings = [{key: told for key, told in to_json(each).items() if key not in BIG} for each in report.findings]
    answers = {
        name: {"said": answer.said, "reason": answer.reason, "unmeasured": list(answer.unmeasured)}
        for name, answer in report.verdict or ()
    }
    return {
        "schema": SCHEMA,
        "out": str(out),
        "exit": 0 if report.is_met else THRESHOLDS_MISSED,
        "model": report.original.name,
        "method": report.method,
        "verdict": answers or None,
        "rules": [to_json(rule) for rule in report.verdict.rules] if report.verdict else [],
        "findings": findings,
        "limits": list(report.limits),
        "seconds": report.cost.total,
    }


def print_json(told: object) -> None:
    """One JSON value on standard output, and nothing else there."""
    print(json.dumps(told, indent=1))
