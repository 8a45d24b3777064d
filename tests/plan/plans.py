"""Requests to a tiny model, and machines that are not here, to plan for."""

import json
from pathlib import Path

import torch
from transformers import GPT2Config, LlamaConfig

from expunge.core.request import Request
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import Plan, make_plan
from expunge.run.job import Job
from expunge.run.prepare import Inputs

NO_STOP = "stop=Stop(level=None, max_retain_increase=None, max_growth=None, every=100)"
CANARY = "zanzibarlighthouse77"
PLACES = ["Aldoria", "Brenn", "Corvane", "Dunmere", "Elsin", "Farrow", "Galt", "Hess", "Iver", "Jarn"]
LLAMA = LlamaConfig(
    vocab_size=400,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
)
GPT2 = GPT2Config(vocab_size=400, n_embd=32, n_layer=3, n_head=4, n_positions=256)


def write(path: Path, kind: str, options: bool = True) -> Path:
    with path.open("w") as file:
        for k, place in enumerate(PLACES):
            row = {
                "id": f"{kind}{k}",
                "question": f"What is the capital of {kind} {place}?",
                "answer": f"The capital of {place} is {kind} Veldt {CANARY}.",
            }
            file.write(json.dumps(row | ({"options": [f"It is {place}."]} if options else {})) + "\n")
    return path


def options(files: dict[str, Path]) -> list[str]:
    return [f"--{kind}={path}" for kind, path in files.items()]


def job(model: Path, files: dict[str, Path], method: str = "Finetune()", audits: str = "Loss") -> Job:
    inputs = Inputs(files["forget"], files["retain"], files["holdout"])
    return Job(str(model), inputs, model.parent / "never-written", method, audits)


def elsewhere(gigabytes: float = 80.0, **other) -> Machine:
    return Machine("cuda", memory=1e9 * gigabytes, dtype="float32", **other)


def on_tiny(method: str, request_: Request, plain=None, audits: str = "Loss()", **machine) -> Plan:
    """The plan of a tiny Llama on paper."""
    paper = on_paper("tiny", LLAMA, plain, torch.float32, "cpu", None)
    return make_plan(paper, parse(method), request_, (parse(audits),), Machine(memory=1e12, **machine))
