"""What every timing here shares: the contenders take turns in one process, so that a busy machine slows them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from expunge.data.text import Passage

HEAD, TAIL = "<!-- {0}:start -->", "<!-- {0}:end -->"
PAGE = Path(__file__).parent.parent / "docs" / "speed.md"


def race(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int,
    warm: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender in each of `repeats` rounds; every round runs all of them once, in turn."""
    for _ in range(warm):
        for run in contenders.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median of the rounds' ratios and their range."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def spread(seconds: Sequence[float]) -> str:
    """Median and range."""
    digits = 3 if statistics.median(seconds) < 10 else 1
    return f"{statistics.median(seconds):.{digits}f} ({min(seconds):.{digits}f}-{max(seconds):.{digits}f})"


def matmul_rate(size: int = 1024, repeats: int = 5) -> float:
    """The machine's own float32 matmul rate in GFLOP/s: the median over `repeats` of squares of 1,024."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    rates = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        rates.append(20 * size**3 / (time.perf_counter() - start) / 1e9)
    return statistics.median(rates[1:])


def counting() -> FlopCounterMode:
    """Counts the products that are done, attention's on a CPU among them, which torch 2.13 by itself leaves out."""
    aten = torch.ops.aten
    ours = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda up, q, k, v, *_, **__: sdpa_backward_flop_count(up, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=ours)


def machine() -> str:
    """Processor, threads, versions."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return (
        f"{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"float32 matmul {matmul_rate():.0f} GFLOP/s"
    )


def peak_memory() -> float:
    """The most memory that this process has held since it began, in MiB (getrusage would tell the parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def settings(what: str | None, *extra: tuple[str, dict]) -> argparse.Namespace:
    """The command line that the scripts share."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into docs/speed.md")
    for name, options in extra:
        parser.add_argument(name, **options)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    return asked


def show(name: str, text: str, write: bool) -> None:
    """Print a result, and put it between its marks in docs/speed.md where that is asked for."""
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        head, tail = HEAD.format(name), TAIL.format(name)
        before, rest = page.split(head)
        PAGE.write_text(f"{before}{head}\n{text}\n{tail}{rest.split(tail)[1]}", encoding="utf-8")


def random_records(count: int, vocabulary: int, seed: int = 0) -> list[Passage]:
    """Questions and answers as long as TOFU's (18 and 36 SmolLM2 tokens, deviations 5.5 and 12.6), of random tokens."""
    draw = torch.Generator().manual_seed(seed)

    def length(mean: float, deviation: float, low: int, high: int) -> int:
        return int(min(high, max(low, mean + deviation * torch.randn((), generator=draw).item())))

    made = []
    for index in range(count):
        asked, said = length(18, 5.5, 10, 51), length(36, 12.6, 8, 82)
        tokens = torch.randint(10, vocabulary, (asked + said,), generator=draw).tolist()
        name = f"{seed}-{index}"
        made.append(Passage(name, tuple(tokens), asked, "", answer=name))
    return made


def tofu(folder: Path, tokenizer: object, count: int, name: str = "forget10_perturbed.jsonl") -> list[Passage]:
    """TOFU's questions with their right answer; the paraphrased and the five wrong ones are the alternatives."""
    from expunge.data.records import Record
    from expunge.data.text import encode

    lines = (folder / name).read_text(encoding="utf-8").splitlines()[:count]
    records = []
    for number, line in enumerate(lines, start=1):
        row = json.loads(line)
        others = [row["paraphrased_answer"], *row["perturbed_answer"]] if "perturbed_answer" in row else []
        options = [text for text in dict.fromkeys(others) if text != row["answer"]]
        records.append(Record(number, {"question": row["question"], "answer": row["answer"], "options": options}))
    return list(encode(records, tokenizer, name, 512))
