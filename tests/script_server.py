"""Runs scripts as `python -c` does, in processes forked from this one: torch and transformers are imported, and neither
peft nor expunge is."""

import sys
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401  which import what takes their seconds

from tests.forks import serve


def run_script(script: str, arguments: Sequence[str]) -> None:
    assert not {"peft", "expunge"} & set(sys.modules)
    sys.argv = ["-c", *arguments]
    sys.path[0] = ""
    exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run_script)
