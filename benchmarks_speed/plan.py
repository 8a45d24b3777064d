"""What `expunge plan` says: on paper for models of 125 M to 70 B, and against real runs at small size.

    python benchmarks_speed/plan.py --paper --write        computed, in some minutes
    python benchmarks_speed/plan.py --write --threads 1    small random Llamas, planned, run and counted
    python benchmarks_speed/plan.py --memory --write --threads 1 --repeats 1 --steps 8    their peak memory alone
    python benchmarks_speed/plan.py --kinds --write --threads 1 --steps 8 [--gguf FILE]   edits, images, a GGUF file

Tables go between their marks in docs/scale.md.
"""

from __future__ import annotations

import json
import os
import statistics
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
from expunge.events import Event, Step
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.notation.parse import parse
from expunge.plan.machine import Machine
from expunge.plan.paper import on_paper
from expunge.plan.plan import Plan, counted
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
    return counted(paper, method, Request(**sets), [parse("Loss()")], where, 0.0, Path("expunged"))


def paper_rows() -> Iterator[list[str]]:
    """A row for each model and adapter."""
    for name in PAPER:
        for adapter in ADAPTERS:
            one, eight = (on_devices(name, adapter, processes) for processes in (1, 8))
            training = [_gigabytes(p.memory.phases["training"]) for p in (one, eight)]
            audits = [
                _gigabytes(max(value for phase, value in p.memory.phases.items() if phase.startswith("audit")))
                for p in (one, eight)
            ]
            yield [
                name,
                adapter.removesuffix("()"),
                f"{one.widths.trainable / 1e6:,.1f} M",
                f"{(one.flops.total - one.flops.audits - one.flops.checks) / 250 / 1e12:,.1f}",
                f"{one.flops.total / 1e15:,.2f}",
                *training,
                f"{_gigabytes(one.memory.kept)} / {_gigabytes(one.memory.recomputed)}",
                *audits,
                _gigabytes(eight.memory.host),
                _gigabytes(sum(one.disk.values())),
            ]
            print(name, adapter, training, flush=True)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.3g}" if value < 1e12 else f"{value / 1e9:,.0f}"


# Measured

SMALL = {
    "3 M": llama(192, 512, 6, 3, 3, 400),
    "10 M": llama(320, 864, 7, 5, 5, 4000),
    "30 M": llama(448, 1280, 10, 7, 7, 8000),
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


def compared(folder: Path, model: Path, adapter: str, steps: int, threads: int) -> dict[str, tuple[float, float]]:
    """What was planned and what was measured."""
    method = f"Finetune(adapter={adapter}, steps={steps}, stop=Stop(level=None, max_retain_increase=None))"
    sets = {kind: folder / f"{kind}.jsonl" for kind in ("forget", "retain", "holdout")}
    given = [str(model), *(f"--{kind}={path}" for kind, path in sets.items()), "--method", method]
    said = json.loads(_command(["plan", *given, "--json"], threads))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _command(["forget", *given, "--out", f"{place}/out"], threads)
        cost = json.loads(Path(f"{place}/out/report.json").read_text())["cost"]
    real = _flops(model, sets, method)
    planned = sum(said["flops"][name] for name in ("forward", "backward", "adapter", "reference", "head"))
    return {
        "tokens": (said["tokens"]["of the examples"], cost["tokens"]),
        "FLOPs of the steps": (planned, real),
        "peak memory": (said["memory"]["peak"], cost["peak_memory_bytes"]),
        "seconds": (sum(said["seconds"].values()), cost["total"]),
        "of them training": (said["seconds"]["forget"], cost["seconds"]["forget"]),
    }


def peaks(folder: Path, model: Path, adapter: str, steps: int, threads: int) -> tuple[float, float]:
    """Peak memory as planned and as the run's report has it."""
    method = f"Finetune(adapter={adapter}, steps={steps}, stop=Stop(level=None, max_retain_increase=None))"
    given = [str(model), *(f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout"))]
    said = json.loads(_command(["plan", *given, "--method", method, "--rate", "1", "--json"], threads))
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _command(["forget", *given, "--method", method, "--out", f"{place}/out"], threads)
        cost = json.loads(Path(f"{place}/out/report.json").read_text())["cost"]
    return said["memory"]["peak"], cost["peak_memory_bytes"]


def peak_rows(steps: int, threads: int) -> Iterator[list[str]]:
    """A row for each of the two smaller models and each adapter."""
    with tempfile.TemporaryDirectory() as place:
        folder = recorded(Path(place))
        for name in ("3 M", "10 M"):
            model = saved(folder / name.replace(" ", ""), SMALL[name])
            for adapter in ADAPTERS:
                planned, real = peaks(folder, model, adapter, steps, threads)
                row = [name, adapter.removesuffix("()"), *(f"{x / 1e6:,.0f}" for x in (planned, real))]
                yield [*row, f"{planned / real:.2f}"]
                print(row, flush=True)


EDITS = ("SSD()", "ASSD(batch=16)", "IAU()")
TRAINED = (
    "Finetune(objective=RetainNLL(), adapter={adapter}, steps={steps}, stop=Stop(level=None, max_retain_increase=None))"
)


def kind_rows(steps: int, threads: int, gguf: str) -> Iterator[list[str]]:
    """A row for each kind of model and method that is no fine-tuning of a language model in a folder."""
    with tempfile.TemporaryDirectory() as place:
        folder = recorded(Path(place))
        texts = [f"--{kind}={folder / kind}.jsonl" for kind in ("forget", "retain", "holdout")]
        images = [f"--forget={pictured(folder / 'images')}", "--forget-class=two"]
        llama = saved(folder / "llama", SMALL["10 M"])
        full = TRAINED.format(adapter="Full()", steps=steps)
        learn = f"Negate(learn=Finetune(objective=-1.0 * Ascent(), adapter=Full(), steps={steps}))"
        cases = [("Llama, 10 M", llama, texts, method) for method in (*EDITS, learn)]
        cases += [
            (name, classifier(folder / name, config), images, method)
            for name, config in IMAGES.items()
            for method in (full, TRAINED.format(adapter="Bounded()", steps=steps), "SSD()")
            if "Bounded" not in method or name.startswith("ViT")
        ]
        if gguf:
            bounded = (
                f"Finetune(steps={steps}, batch=4, retain_batch=4, stop=Stop(level=None, max_retain_increase=None))"
            )
            cases.append(("GGUF file", Path(gguf), texts, bounded))
        for name, model, data, method in cases:
            made = [str(model), *data, "--method", method, "--audits", "Loss"]
            said = json.loads(_command(["plan", *made, "--out", f"{place}/out", "--json"], threads))
            with tempfile.TemporaryDirectory(dir=folder) as out:
                _command(["forget", *made, "--out", f"{out}/out"], threads)
                cost = json.loads(Path(f"{out}/out/report.json").read_text())["cost"]
            memory = said["memory"]["peak"], float(cost["peak_memory_bytes"])
            seconds = sum(said["seconds"].values()), cost["total"]
            read = said["tokens"]["of the examples"], cost["tokens"]
            row = [name, f"`{method.partition('(')[0]}`" + (" Full" if "Full" in method else "")]
            row += [f"{read[0]:,.0f} / {read[1]:,}", *(f"{x / 1e6:,.0f}" for x in memory)]
            row += [f"{memory[0] / memory[1]:.2f}", *(f"{x:.1f}" for x in seconds), f"{seconds[0] / seconds[1]:.2f}"]
            yield row
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


def _command(words: list[str], threads: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "EXPUNGE_CACHE": "off", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-m", "expunge", *words], capture_output=True, text=True, env=environment)
    if run.returncode not in (0, 6):  # 6: it ran, and did not forget enough
        raise SystemExit(run.stderr)
    return run.stdout


def _flops(model: Path, sets: dict[str, Path], method: str) -> int:
    """Counted by torch in the steps of a run, with attention written out as products, which is what it can count."""
    network = open_network(str(model))
    module = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").requires_grad_(False).eval()
    eager = LanguageModel.of(module, network.tokenizer)
    request = Inputs(**sets).read().request(eager)
    total, last = 0, 0
    with FlopCounterMode(display=False) as counter:

        def on_event(event: Event) -> None:
            nonlocal total, last
            now = counter.get_total_flops()
            total += now - last if isinstance(event, Step) else 0
            last = now

        parse(method)(eager, request, on_event)
    return total


def measured_rows(steps: int, repeats: int, threads: int) -> Iterator[list[str]]:
    """A row for each model, adapter and quantity; of several runs the median of the ratios, and their range."""
    with tempfile.TemporaryDirectory() as place:
        folder = recorded(Path(place))
        for name, config in SMALL.items():
            model = saved(folder / name.replace(" ", ""), config)
            for adapter in ADAPTERS:
                runs = [compared(folder, model, adapter, steps, threads) for _ in range(repeats)]
                for what in runs[0]:
                    ratios = [run[what][0] / run[what][1] for run in runs]
                    planned, real = (statistics.median(run[what][k] for run in runs) for k in (0, 1))
                    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
                    yield [name, adapter.removesuffix("()"), what, f"{planned:,.4g}", f"{real:,.4g}", spread]
                    print(name, adapter, what, spread, flush=True)


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
        ("--memory", {"action": "store_true", "help": "peak memory alone"}),
        ("--kinds", {"action": "store_true", "help": "edits, images, and a GGUF file where one is given"}),
        ("--gguf", {"default": "", "help": "a GGUF file to plan and run"}),
        ("--steps", {"type": int, "default": 20}),
    )
    if asked.paper:
        head = ["model", "adapter", "numbers that move", "TFLOP a step", "PFLOP in all", "GB in training, 1 device"]
        head += ["8 devices, each", "activations kept / recomputed", "GB in audits, 1 device", "cut over 8, each"]
        head += ["GB on the host to merge", "GB on disk"]
        put("paper", table(head, list(paper_rows())), asked.write)
        return
    if asked.kinds:
        head = ["model", "method", "read by steps, planned / run", "planned, MB", "measured, MB", "ratio"]
        head += ["planned, s", "measured, s", "ratio"]
        found = table(head, list(kind_rows(asked.steps, asked.threads, asked.gguf)))
        put("kinds", f"{machine()}; {asked.steps} steps, one run each\n\n{found}", asked.write)
        return
    if asked.memory:
        head = ["model", "adapter", "planned, MB", "measured, MB", "planned / measured"]
        found = table(head, list(peak_rows(asked.steps, asked.threads)))
        put("peaks", f"{machine()}; {asked.steps} steps, one run each\n\n{found}", asked.write)
        return
    head = ["parameters", "adapter", "what", "planned", "measured", "planned / measured"]
    found = table(head, list(measured_rows(asked.steps, asked.repeats, asked.threads)))
    put("measured", f"{machine()}; {asked.steps} steps, {asked.repeats} runs\n\n{found}", asked.write)


if __name__ == "__main__":
    main()
