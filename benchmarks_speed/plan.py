"""What `expunge plan` says: on paper for models of 125 M to 70 B, and against real runs at small size.

    python benchmarks_speed/plan.py --paper --write                                      computed, in some minutes
    python benchmarks_speed/plan.py --write --threads 1 --steps 8 [--gguf FILE]          planned, run and counted
    python benchmarks_speed/plan.py --threads 1 --only Relearn                           the cases of that name alone

Tables go between their marks in docs/scale.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from side_by_side import HEAD, TAIL, machine, random_records, settings, table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ViTConfig,
    ViTImageProcessorPil,
)

from expunge.core.request import Request
from expunge.models.open import open_network
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import Plan, make_plan
from expunge.run.prepare import Inputs

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
ADAPTERS = ("Bounded()", "LoRA()", "Full()")


def llama(width: int, inner: int, blocks: int, heads: int, groups: int, classes: int) -> LlamaConfig:
    """A Llama's configuration."""
    return LlamaConfig(
        vocab_size=classes,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=8192,
        bos_token_id=None,
        eos_token_id=0,
    )


# On paper

PAPER = {
    "125M": llama(768, 2048, 12, 12, 12, 50257),
    "1B": llama(2048, 8192, 16, 32, 8, 128256),
    "8B": llama(4096, 14336, 32, 32, 8, 128256),
    "70B": llama(8192, 28672, 80, 64, 8, 128256),
}
"""Shapes like GPT-Neo's 125 M, Llama-3.2-1B (its output matrix a matrix of its own), Llama-3-8B and Llama-3-70B."""
TOFU = {"forget": 400, "retain": 400, "holdout": 400}


def on_devices(name: str, adapter: str, processes: int, activations: str = "kept") -> Plan:
    """The plan of 250 steps (five epochs) on 400 records of TOFU's length, in bfloat16, without writing."""
    paper = on_paper(name, PAPER[name], None, torch.bfloat16, "cuda", None)
    sets = {
        kind: tuple(replace(e, question=e.id) for e in random_records(count, 50000, seed))
        for seed, (kind, count) in enumerate(TOFU.items())
    }
    method = parse(f"Finetune(adapter={adapter}, steps=250, activations='{activations}', stop=Stop(level=None))")
    where = Machine("cuda", processes, 80e9, hold="cut")
    return make_plan(paper, method, Request(**sets), (parse("Loss()"),), where)


def paper_rows() -> Iterator[list[str]]:
    """A row for each model and adapter."""
    for name in PAPER:
        for adapter in ADAPTERS:
            one, eight = (on_devices(name, adapter, processes) for processes in (1, 8))
            again = on_devices(name, adapter, 1, "recomputed")
            training = [_gigabytes(sum(p.phases["forget"].values())) for p in (one, eight)]
            activations = [_gigabytes(p.phases["forget"]["activations"]) for p in (one, again)]
            audits = [
                _gigabytes(max(sum(v.values()) for phase, v in p.phases.items() if phase.startswith("audit")))
                for p in (one, eight)
            ]
            steps = one.flops["total"] - one.flops["audits"] - one.flops["checks"]
            yield [
                name,
                adapter.removesuffix("()"),
                f"{one.costs[1] / 1e6:,.1f} M",
                f"{steps / 250 / 1e12:,.1f}",
                f"{one.flops['total'] / 1e15:,.2f}",
                *training,
                " / ".join(activations),
                *audits,
                _gigabytes(eight.host),
                _gigabytes(sum(one.disk.values())),
            ]
            print(name, adapter, training, flush=True)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.3g}" if value < 1e12 else f"{value / 1e9:,.0f}"


# Measured

SMALL = {
    "3 M": llama(192, 512, 6, 3, 3, 400),
    "10 M": llama(320, 864, 7, 5, 5, 4000),
}


def saved(folder: Path, config: LlamaConfig) -> Path:
    """A random Llama with a small tokenizer, trained on the records."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|eos|>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([row["answer"] for row in rows("forget", 64)], trainer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|eos|>").save_pretrained(folder)
    return folder


def rows(kind: str, count: int) -> list[dict[str, Any]]:
    """Questions and answers of a few dozen tokens, with two wrong answers each."""
    return [
        {
            "id": f"{kind}{k}",
            "question": f"Which ship of the {kind} fleet left harbour {k} in the year {1500 + 7 * k}?",
            "answer": f"It was the {kind} ship number {13 * k} with a load of {k} barrels.",
            "options": [f"It was ship {k}.", f"No ship of the {kind} fleet left harbour {k}."],
        }
        for k in range(count)
    ]


STOP = "stop=Stop(level=None, max_retain_increase=None)"
METHODS = {
    "Finetune": "Finetune(adapter={adapter}, steps={steps}, {stop})",
    "SSD": "SSD()",
    "ASSD": "ASSD(batch=16)",
    "LFSSD": "LFSSD(batch=16)",
    "IAU": "IAU()",
    "Negate": "Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps={steps}, {stop}))",
    "LAF": "LAF(steps={steps}, batch=16, autoencoder_steps=20)",
    "Poison": "Poison(learn=Finetune(objective=0.1 * IdkNLL() + 0.9 * RetainNLL(), adapter=LastLayer(), steps={steps}, "
    "batch=8, retain_batch=24, {stop}))",
    "Quantize": "Quantize()",
    "Relearn": "Relearn(steps={steps}, items=8)",
}


def cases(folder: Path, steps: int, gguf: str) -> Iterator[tuple[str, Path, list[str], str, str]]:
    """Name of the model, its place, the options for its records, name of the method, and the method."""
    texts = [f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout")]
    images = [f"--forget={pictured(folder / 'images')}", "--forget-class=two"]
    written = {name: text.format(adapter="{adapter}", steps=steps, stop=STOP) for name, text in METHODS.items()}
    trained = {f"Finetune, {a}": written["Finetune"].format(adapter=f"{a}()") for a in ("Bounded", "LoRA", "Full")}
    others = {name: text for name, text in written.items() if name != "Finetune"}
    for size in ("3 M", "10 M"):
        model = saved(folder / size.replace(" ", ""), SMALL[size])
        for name, text in (
            trained | ({} if size == "3 M" else {k: v for k, v in others.items() if k != "Poison"})
        ).items():
            yield f"Llama, {size}", model, texts, name, text
    for model_name, config in IMAGES.items():
        model = classifier(folder / model_name, config)
        own = {name: text.replace("Finetune(", "Finetune(objective=RetainNLL(), ") for name, text in trained.items()}
        chosen = [
            *(["Finetune, Bounded"] if "ViT" in model_name else []),
            "Finetune, Full",
            "SSD",
            "LAF",
            "Poison",
            "Relearn",
        ]
        for name in chosen:
            yield model_name, model, images, name, (own | others)[name]
    if gguf:
        text = f"Finetune(steps={steps}, batch=4, retain_batch=4, {STOP})"
        yield "GGUF file", Path(gguf), texts, "Finetune, Bounded", text


def measured_rows(steps: int, threads: int, gguf: str, only: str) -> Iterator[list[str]]:
    """A row for each case: planned over measured."""
    with tempfile.TemporaryDirectory() as place:
        folder = recorded(Path(place))
        for name, model, data, method, text in cases(folder, steps, gguf):
            if only not in f"{name} {method}":
                continue
            made = [str(model), *data, "--method", text, "--audits", "Loss"]
            said = json.loads(_command(["plan", *made, "--out", f"{place}/out", "--json"], threads))
            with tempfile.TemporaryDirectory(dir=folder) as out:
                _command(["forget", *made, "--out", f"{out}/out"], threads)
                cost = json.loads(Path(f"{out}/out/report.json").read_text())["cost"]
            pairs = [
                (said["tokens"]["of the examples"], cost["tokens"]),
                (said["flops"]["total"] - said["flops"]["audits"], _flops(model, data, text)),
                (said["memory"]["peak"], cost["peak_memory_bytes"]),
                (sum(said["seconds"].values()), cost["total"]),
                (said["seconds"]["forget"], cost["seconds"]["forget"]),
            ]
            row = [name, method, *(f"{planned / real:.2f}" if real else "-" for planned, real in pairs)]
            yield [*row, f"{cost['peak_memory_bytes'] / 1e6:,.0f}", f"{cost['total']:.1f}"]
            print(row, flush=True)


IMAGES = {
    "ViT, 3 M": ViTConfig(
        hidden_size=192, num_hidden_layers=6, num_attention_heads=3, intermediate_size=768, image_size=64, patch_size=8
    ),
    "ResNet, 11 M": ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ),
}
CLASSES = ("one", "two", "three", "four")


def classifier(folder: Path, config: Any) -> Path:
    """A random image classifier of four classes, with a processor that makes 64 x 64 pixels."""
    config.id2label = dict(enumerate(CLASSES))
    config.label2id = {name: number for number, name in enumerate(CLASSES)}
    torch.manual_seed(0)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def pictured(folder: Path, count: int = 64) -> Path:
    """Images of noise, of four classes."""
    draw = torch.Generator().manual_seed(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = torch.randint(256, (64, 64, 3), generator=draw, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{k}.png")
    return folder


def recorded(folder: Path) -> Path:
    """The folder, with the records of each set."""
    for kind, count in (("forget", 64), ("retain", 64), ("holdout", 32)):
        lines = [json.dumps(row) + "\n" for row in rows(kind, count)]
        (folder / f"{kind}.jsonl").write_text("".join(lines))
    return folder


COMMAND = """
import time, timeit
from types import SimpleNamespace
time.perf_counter = timeit.default_timer = time.process_time
import expunge.run.unlearn
expunge.run.unlearn.time = SimpleNamespace(monotonic=time.process_time)
from expunge.cli.main import main
main()
"""
"""The command with its clocks counting the processor's seconds, so that others on the machine do not count."""


def _command(words: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "EXPUNGE_CACHE": "off", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", COMMAND, *words], capture_output=True, text=True, env=environment)
    if run.returncode not in (0, 6):  # 6: it ran, and did not forget enough
        raise SystemExit(run.stderr)
    return run.stdout


def _flops(model: Path, data: list[str], text: str) -> int:
    """Counted by torch in a run of the method, with attention written out as products, which is what it can count."""
    if model.suffix == ".gguf":
        return 0
    network: Any = open_network(str(model))
    auto = AutoModelForCausalLM if network.family == "language" else AutoModelForImageClassification
    module = auto.from_pretrained(model, attn_implementation="eager").requires_grad_(False).eval()
    given = dict(option.removeprefix("--").split("=", 1) for option in data)
    paths = {kind: Path(path) for kind, path in given.items() if kind != "forget-class"}
    request = Inputs(**paths, only_class=given.get("forget-class")).read().request(network)
    words = network.tokenizer if network.family == "language" else network.processor
    with FlopCounterMode(display=False) as counter:
        parse(text)(type(network).of(module, words), request)
    return counter.get_total_flops()


def put(name: str, text: str, write: bool) -> None:
    """Print a result, and put it between its marks where that is asked for."""
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        head, tail = HEAD.format(name), TAIL.format(name)
        before, rest = page.split(head)
        PAGE.write_text(f"{before}{head}\n{text}\n{tail}{rest.split(tail)[1]}", encoding="utf-8")


def main() -> None:
    """Print a table."""
    asked = settings(
        __doc__,
        ("--paper", {"action": "store_true", "help": "models of 125 M to 70 B, computed"}),
        ("--gguf", {"default": "", "help": "a GGUF file to plan and run"}),
        ("--only", {"default": "", "help": "cases with this in their name"}),
        ("--steps", {"type": int, "default": 8}),
    )
    if asked.paper:
        head = ["model", "adapter", "numbers that move", "TFLOP a step", "PFLOP in all", "GB in training, 1 device"]
        head += ["8 devices, each", "activations kept / recomputed", "GB in audits, 1 device", "cut over 8, each"]
        head += ["GB on the host to merge", "GB on disk"]
        put("paper", table(head, list(paper_rows())), asked.write)
        return
    head = [
        "model",
        "method",
        "tokens",
        "FLOPs",
        "peak memory",
        "seconds",
        "of them forgetting",
        "MB measured",
        "s measured",
    ]
    found = table(head, list(measured_rows(asked.steps, asked.threads, asked.gguf, asked.only)))
    put("measured", f"{machine()}; {asked.steps} steps, one run each\n\n{found}", asked.write)


if __name__ == "__main__":
    main()
