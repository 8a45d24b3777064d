"""Rows of the tables in docs/architectures.md: each architecture is tried in a process of its own, so that a crash or a
hang is one row."""

from __future__ import annotations

import json
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

SECONDS = 240
"""The longest that one architecture may take."""


@dataclass(frozen=True)
class Row:
    """How one architecture is read."""

    name: str
    read: str = ""
    """As trees, padded or one by one; empty where it is not read."""
    written: str = ""
    note: str = ""
    wrong: bool = False

    def __str__(self) -> str:
        return f"| {self.name} | {self.read} | {self.written} | {self.note} |"


def rows(wanted: Sequence[str], check: Callable[[str], Row], kept: Path | None) -> Iterator[Row]:
    """The rows of all that is wanted, as they come."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept and kept.exists() else []
    known = {row["name"]: Row(**row) for row in map(json.loads, lines)}
    for name in wanted:
        if name not in known:
            known[name] = in_a_process(name, check)
            if kept:
                with kept.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(known[name])) + "\n")
        yield known[name]


def in_a_process(name: str, check: Callable[[str], Row]) -> Row:
    """The row of one architecture, worked out in a fork that is ended when it takes too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        row = _row(name, check)
        os.write(writer, json.dumps(asdict(row)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said:
        return Row(**json.loads(said))
    why = "took too long" if code in (-signal.SIGXCPU, -signal.SIGKILL) else f"ended with {code}"
    return Row(name, note=f"WRONG: {why}", wrong=True)


def _row(name: str, check: Callable[[str], Row]) -> Row:
    try:
        return check(name)
    except AssertionError as error:
        return Row(name, note=f"WRONG: {error}"[:300], wrong=True)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = next(
            (f.name for f in reversed(traceback.extract_tb(error.__traceback__)) if "tests" in f.filename), "?"
        )
        what = " ".join(str(error).split())[:160]
        return Row(name, note=f"WRONG: {type(error).__name__} in {where} ({place.name}): {what}", wrong=True)


def read_rows(page: str) -> list[Row]:
    """The rows of a table that was written."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return [
        Row(*each, wrong=each[3].startswith("WRONG")) for each in cells if len(each) == 4 and each[0] != "architecture"
    ]


def table(head: str, made: Sequence[Row], version: str) -> str:
    """A table with its numbers above it."""
    counts = {
        "total": len(made),
        "read": sum(bool(row.read) and not row.wrong for row in made),
        "refused": sum(row.note.startswith("refused") for row in made),
        "unbuilt": sum(row.note.startswith("could not be built") for row in made),
        "wrong": sum(row.wrong for row in made),
    }
    return head.format(version=version, **counts) + "".join(f"{row}\n" for row in made)


def spread(module: nn.Module) -> nn.Module:
    """Matrices far from their start, where all answers look alike."""
    draw = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            fan = (
                parameter[0].numel() if parameter.dim() == 4 else parameter.shape[-1]
            )  # a convolution's, or a matrix's
            parameter.data = torch.randn(parameter.shape, generator=draw) * 1.2 * max(fan, 4) ** -0.5
    return module


def assert_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-4) -> None:
    """No farther apart than the tolerance, absolutely and by the largest."""
    gap = float((ours - theirs).abs().max())
    assert gap <= tolerance * max(1.0, float(theirs.abs().max())), f"{what} differ by {gap:.2g}"


def assert_gradients(ours: nn.Module, theirs: nn.Module) -> None:
    """Both have those of the same weights, and they are the same."""
    mine = dict(ours.named_parameters())
    largest = max(float(right.grad.abs().max()) for right in theirs.parameters() if right.grad is not None)
    for name, right in theirs.named_parameters():
        own = mine[name]
        assert (own.grad is None) == (right.grad is None), f"{name} has a gradient here and not there"
        if right.grad is not None and own.grad is not None:
            scale = float(right.grad.abs().max())
            gap = float((own.grad - right.grad).abs().max())
            assert gap <= 1e-3 * scale + 1e-6 * max(10.0, largest), (
                f"gradients of {name} differ by {gap:.2g} of {scale:.2g}"
            )
