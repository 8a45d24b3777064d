"""A process that dies ends the others, whatever they wait in: a step, a text, or the first one's work.

The file is a program, too: each of two processes runs `test_lost.py FOLDER CASE`, and writes what ended it into FOLDER.
"""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from expunge.core.question import Text
from expunge.errors import RunFailed
from expunge.runtime import processes as distributed
from expunge.runtime.parallel_model import ask_together
from expunge.runtime.processes import barrier, broadcast, is_main, processes, rank
from tests.runtime.test_parallel import REQUEST, tiny

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent.parent
"""Where the processes find what they import of the tests."""


def die() -> NoReturn:
    """As where the kernel ends a process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def all_write() -> None:
    """Both write; one is killed before its fifth pass."""
    model: Any = ask_together(tiny(), "cut")
    passes = iter(range(4))
    if rank() == 1:
        model.local.module.register_forward_pre_hook(lambda *_: None if next(passes, None) is not None else die())
    model.ask(Text(30), [replace(example, prompt_tokens=example.tokens[:2]) for example in REQUEST.retain])


def one_waits(dead: int) -> None:
    """The other dies when it knows that it is waited for."""
    barrier()
    if rank() == dead:
        while distributed._store().add("meet/1", 0) == 0:
            time.sleep(0.01)
        die()
    barrier()


def gone_before() -> None:
    """One is gone for a while before the other looks."""
    barrier()
    if not is_main():
        die()
    time.sleep(1)
    barrier()


def first_works() -> None:
    """The first has something to make for all, and dies of it."""
    assert broadcast(lambda: 3) == 3
    broadcast(die)


def long_work() -> None:
    """The first works for longer than anybody waits in the middle of a step, and all of them live."""
    assert broadcast(lambda: time.sleep(3 * distributed.PATIENCE.seconds) or 3) == 3
    barrier()


CASES: dict[str, Callable[[], None]] = {
    "all-write": all_write,
    "first-waits": lambda: one_waits(1),
    "second-waits": lambda: one_waits(0),
    "gone-before": gone_before,
    "first-works": first_works,
    "long-work": long_work,
}


@pytest.mark.parametrize(
    ("case", "dead"),
    [("all-write", 1), ("first-waits", 1), ("second-waits", 0), ("gone-before", 1), ("first-works", 0)],
)
def test_a_process_that_dies_ends_the_one_that_waits_for_it(start, tmp_path: Path, case: str, dead: int):
    """Nobody waits for one that will not come."""
    said = start(tmp_path, case, processes=2, program=__file__, folder=ROOT).end()
    assert [each.code for each in said] == ([-9, 99] if dead == 0 else [99, -9]), said[1 - dead].err
    told_of_it = (tmp_path / f"{1 - dead}.txt").read_text()
    assert told_of_it.startswith(f"Process {1 - dead} of 2 lost another rank: it died")


def test_who_has_much_to_do_between_steps_is_waited_for(start, tmp_path: Path):
    said = start(tmp_path, "long-work", processes=2, program=__file__, folder=ROOT).end()
    assert [each.code for each in said] == [0, 0], said[0].err + said[1].err


DIES = """
import os
import signal
from expunge.run import job
from expunge.cli import main as cli

job.save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main()
"""


def test_the_command_ends_with_one_line_where_the_first_dies_while_it_saves(start, model: Path, tmp_path: Path):  # S08
    """The others wait for it, for as long as saving takes."""
    for kind in ("forget", "retain"):
        rows = [{"id": f"{kind}{k}", "question": f"What is {kind} {k}?", "answer": f"It is {k}."} for k in range(3)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dies.py").write_text(DIES)
    sets = [f"--forget={tmp_path / 'forget.jsonl'}", f"--retain={tmp_path / 'retain.jsonl'}"]
    method = (
        "Finetune(objective=GradDiff(), adapter=LoRA(rank=2), steps=2, "
        "stop=Stop(level=None, max_retain_increase=None, every=9))"
    )
    asked = ["forget", model, *sets, "--audits", "Loss", "--method", method, "--out", tmp_path / "out"]
    said = start(*asked, processes=2, program=str(tmp_path / "dies.py")).end()
    assert [each.code for each in said] == [-9, 5], said[0].err + said[1].err
    [line] = [line for each in said for line in each.err.splitlines() if line.startswith("expunge: ")]
    assert line.startswith("expunge: E5-run: Process 1 of 2 lost another rank: it died")
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    warnings.simplefilter("error")
    for text in ("torch", "transformers"):  # as pyproject.toml has it
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=f"{text}.*")
    if sys.argv[2] == "long-work":
        distributed.PATIENCE = timedelta(seconds=1)
    try:
        with processes("cpu"):
            CASES[sys.argv[2]]()
    except RunFailed as error:
        (Path(sys.argv[1]) / f"{os.environ['RANK']}.txt").write_text(str(error))
        raise
