"""The notation of rules, `SET.AUDIT <= BOUND`, such as `retain.Choice >= before - 0.05`; nothing is evaluated."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from expunge.errors import UsageRefused

LONGEST = 1000
"""Most characters of a rule."""
RULE = re.compile(r"\s*([\w -]+?)\s*\.\s*(\w+)\s*(<=|>=|<|>)\s*(.+?)\s*")
NAMES = ("before", "reference", "ideal")
"""What a bound may name."""


def split_rule(text: str) -> tuple[str, str, str, ast.expr]:
    """Set, audit, sign and bound of a rule. Raises `UsageRefused` where `text` is none."""
    match = RULE.fullmatch(text) if len(text) <= LONGEST else None
    if match:
        try:
            bound = ast.parse(match[4], mode="eval").body
            bound_value(bound, dict.fromkeys(NAMES, 1.0))
            return match[1], match[2], match[3], bound
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            pass
    shown = text if len(text) <= 200 else f"{text[:200]}..."
    raise UsageRefused(
        f"--require '{shown}' could not be read. Write SET.AUDIT <= BOUND, such as forget.Choice <= 0.25 or "
        f"retain.Choice >= before - 0.05; a bound may name before, reference and ideal."
    )


def bound_value(node: ast.expr, names: Mapping[str, float]) -> float:
    """The number that a bound is, given those that it may name. Raises `ValueError` where it names another."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return float(value)
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -bound_value(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, (ast.Add, ast.Sub, ast.Mult)):
            a, b = bound_value(left, names), bound_value(right, names)
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b
    raise ValueError(ast.unparse(node))
