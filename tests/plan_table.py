"""Which causal architectures can be planned: as many as can be forgotten with.

python -m tests.plan_table               every architecture, each in a process of its own
python -m tests.plan_table --write       and the count written to docs/scale.md
python -m tests.plan_table llama jamba   some of them
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
from pathlib import Path

import torch
import transformers

from expunge.core.question import LogProbabilities
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import Refusal
from expunge.methods.finetune import Finetune
from expunge.models.language import LanguageModel
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import make_plan
from tests.architectures import CAUSAL, DECODERS, build, tiny

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
START, END = "<!-- architectures:start -->", "<!-- architectures:end -->"
SECONDS = 120
"""Of the processor, for one architecture."""
SAYS_SO = "refused by forget too"


def texts(first: int, count: int) -> tuple[Passage, ...]:
    """Texts of 12 tokens and more, no two alike."""
    return tuple(
        Passage(f"{k}", tuple((8 * k + j) % 60 + 2 for j in range(12 + k - first)), 3, f"q{k}", f"a{k}")
        for k in range(first, first + count)
    )


REQUEST = Request(forget=texts(0, 4), retain=texts(100, 4), holdout=texts(200, 4))


def check(name: str) -> str:
    """What the plan of a default run says of a tiny model: its GFLOP, or why it or `forget` refuses.

    Raises where it fails, or where FLOPs or memory are no positive numbers.
    """
    try:
        module = build(name)
        network = LanguageModel.of(module, None)
        adapter = Finetune().fit(network, REQUEST).adapter
        assert adapter is not None
        adapter.insert(network, REQUEST)
        network.ask(LogProbabilities(), REQUEST.forget)
    except (ImportError, Refusal, ValueError) as error:
        return f"{SAYS_SO}: {str(error).partition(': ')[2] or error}"
    try:
        return f"{plan_flops(name) / 1e9:.2g} GFLOP"
    except Exception:
        try:
            Finetune(steps=1)(network, REQUEST)
        except Exception as error:
            return f"{SAYS_SO}: {type(error).__name__}: {error}"
        raise


def plan_flops(name: str) -> float:
    """FLOPs of a default run of two steps on a tiny model."""
    paper = on_paper(name, tiny(name), None, torch.float32, "cpu", None)
    plan = make_plan(paper, Finetune(steps=2), REQUEST, (parse("Loss()"),), Machine(memory=1e12))
    total, peak = plan.flops["total"], plan.peak
    assert 0 < total < math.inf, total
    assert paper.weights < peak < math.inf, peak
    return total


def check_apart(name: str) -> str:
    """The same in a process of its own, with a limit."""
    read, write = os.pipe()
    if not (child := os.fork()):
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            said = check(name)
        except Refusal as error:
            said = f"REFUSED: {error}"
        except BaseException as error:
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read() or "FAILED: it took too long, or died"


def main(arguments: list[str]) -> None:
    """The command."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable()
    check("llama")  # what is loaded and compiled once, is then in every process
    found = {}
    for name in [each for each in arguments if not each.startswith("--")] or [
        name for name in CAUSAL if name not in DECODERS
    ]:
        found[name] = check_apart(name)
        print(f"{name}: {found[name]}", flush=True)
    if "--write" in arguments:
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(START)
        PAGE.write_text(f"{head}{START}\n{_paragraph(found)}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _paragraph(found: dict[str, str]) -> str:
    alike = [name for name, said in found.items() if said.startswith(SAYS_SO)]
    not_planned = {name: said for name, said in found.items() if said.startswith(("REFUSED", "FAILED"))}
    planned = len(found) - len(alike) - len(not_planned)
    lines = [
        f"Of {len(found)} causal architectures of transformers {transformers.__version__}, built tiny, {planned} are "
        f"planned, {len(alike)} are refused as `forget` refuses them, and {len(not_planned)} are not planned though "
        f"`forget` runs{':' if not_planned else '.'}",
    ]
    return "\n".join(lines + [f"- `{name}`: {said}" for name, said in not_planned.items()])


if __name__ == "__main__":
    main(sys.argv[1:])
