"""Runs the command, or another program, in processes forked from this one, which has imported all that it needs."""

import runpy
import sys
from collections.abc import Sequence

import peft  # noqa: F401
import torch
import transformers  # noqa: F401

import expunge.cli.main
import expunge.report.pages
import expunge.run.job  # noqa: F401
from tests.forks import serve


def run_command(program: str, arguments: Sequence[str]) -> None:
    sys.argv = ["expunge", *arguments]
    runpy.run_path(program, run_name="__main__") if program else expunge.cli.main.main()


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run_command)
