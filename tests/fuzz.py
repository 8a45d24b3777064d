"""Damages files and texts at random and reads them: each is read or refused in one line, and nothing else ever happens.

    EXPUNGE_SHAPES=off PYTHONPATH=. python tests/fuzz.py DIR [KIND ...] [--seed 0] [--many 1.0]

Kinds: models (3,000 folders), data (2,000 files), reports (1,000 folders), notation (20,000 texts), rules (2,000).
An escape is an exception that is no refusal, a refusal of more than one line, one that quotes a record, or more than
five seconds of a processor for one. `tests/test_fuzz.py` runs a few hundred of each with a fixed seed.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from expunge.data import text as texts
from expunge.errors import Refusal
from expunge.models.open import open_model
from expunge.notation.parse import check_names, parse
from expunge.report.pages import write_page
from expunge.report.report import Report
from expunge.report.required import Rule
from expunge.runtime.atomic_files import write_manifest

SECRET = "zanzibarlighthouse77"
SLOW = 5.0
MANY = {"models": 3000, "data": 2000, "reports": 1000, "notation": 20000, "rules": 2000}


@dataclass
class Tally:
    """What came of each."""

    read: int = 0
    refused: int = 0
    escapes: list[str] = field(default_factory=list)

    def try_one(self, name: str, read: Callable[[], object]) -> None:
        begun = time.process_time()
        signal.signal(signal.SIGVTALRM, _too_long)
        signal.setitimer(signal.ITIMER_VIRTUAL, 2 * SLOW)
        try:
            read()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            self.read += 1
        except Refusal as error:
            self.refused += 1
            line = error.line()
            if not line.isprintable() or len(line) > 2000 or SECRET in line:
                self.escapes.append(f"{name}: a line that is none: {ascii(line)[:300]}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            where = error.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}" if where else "?"
            self.escapes.append(f"{name}: {type(error).__name__} in {place}: {str(error)[:200]}")
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        taken = time.process_time() - begun
        if taken > SLOW:
            self.escapes.append(f"{name}: {taken:.1f} s")


def _too_long(number: int, frame: object) -> None:
    raise SystemExit("did not end")


# Bytes and values


def damage(content: bytes, draw: random.Random) -> bytes:
    """Bits flipped, pieces cut out, doubled, moved, replaced; or all of it something else."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        at = draw.randrange(len(made) + 1)
        upto = min(len(made), at + draw.choice((1, 2, 8, 40, 400)))
        match draw.randrange(8):
            case 0 if made:
                made[min(at, len(made) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del made[at:upto]
            case 2:
                made[at:at] = made[at:upto]
            case 3:
                made[at:at] = draw.randbytes(draw.choice((1, 4, 30)))
            case 4:
                del made[at:]
            case 5:
                made[at:upto] = draw.choice(
                    (b"\0", b"\n", b'"', b"[" * 3000, b"{", b"NaN", b"1e999", b"-1", b"\xff\xfe", b"\x1b[2J")
                )
            case 6:
                made[at:upto] = bytes(upto - at)
            case _:
                made[at:upto] = reversed(made[at:upto])
    return bytes(made)


ODD = (
    None, True, False, 0, -1, 1, 2**31, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "a\nb", "\x1b[31m", "\u202e", "\ud800", "../../etc/passwd", "x" * 5000, [], [None], [[]], {}, {"": None}, [1, "a"],
    {"a": {"b": []}}, "1", "True", "nan", [0] * 500,
)  # fmt: skip


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """Every place in a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*path, key))


def mutate(value: object, draw: random.Random) -> object:
    """A JSON value with some of its parts missing, doubled, of another type, or somewhere else."""
    made = json.loads(json.dumps(value))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        path = draw.choice(list(places(made)))
        if not path:
            if draw.random() < 0.1:
                made = copy.deepcopy(draw.choice(ODD))
            continue
        *above, last = path
        inside = made
        for key in above:
            inside = inside[key]
        match draw.randrange(5):
            case 0 if isinstance(inside, dict):
                del inside[last]
            case 1 if isinstance(inside, dict):
                inside[draw.choice(("odd", "", "a\nb", "__class__", str(last) + " "))] = inside[last]
            case 2 if isinstance(inside, list):
                inside.insert(0, inside[last])
            case _:
                inside[last] = copy.deepcopy(draw.choice(ODD))  # what is put in may be changed in turn
    return made


# What is read


def fuzz_models(place: Path, many: int, draw: random.Random) -> Tally:
    """Folders of a tiny language model, one of whose files is damaged."""
    from tests.conftest import CHAT, save_model

    source, tally = place / "model", Tally()
    if not source.is_dir():
        save_model(source)
        (source / "chat_template.jinja").write_text(CHAT)
    files = sorted(path.name for path in source.iterdir())
    for k in range(many):
        folder = place / "fuzzed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        name = draw.choice([*files, "model.safetensors", "config.json"])
        path = folder / name
        content = path.read_bytes()
        if name.endswith(".json") and draw.random() < 0.7:
            changed = json.dumps(mutate(json.loads(content), draw)).encode()
        elif name.endswith(".safetensors") and draw.random() < 0.7:
            length = int.from_bytes(content[:8], "little")
            head = (
                damage(content[8 : 8 + length], draw)
                if draw.random() < 0.5
                else mutate_header(content[8 : 8 + length], draw)
            )
            changed = len(head).to_bytes(8, "little") + head + content[8 + length :]
        else:
            changed = damage(content, draw)
        path.write_bytes(changed)
        tally.try_one(f"models {k} {name}", lambda folder=folder: open_and_ask(folder))
    return tally


def mutate_header(head: bytes, draw: random.Random) -> bytes:
    made = json.dumps(mutate(json.loads(head), draw))
    if draw.random() < 0.2:  # a key twice
        made = made[:-1] + "," + made[1:]
    return made.encode(errors="surrogatepass")


def open_and_ask(folder: Path) -> None:
    """A model that is read must also answer, or refuse."""
    from expunge.audits.loss import Loss
    from expunge.run.prepare import read_request

    model = open_model(folder)
    request = read_request(model, forget=[{"question": "What is it?", "answer": f"It is {SECRET}."}])
    Loss()(model, request)


def fuzz_data(place: Path, many: int, draw: random.Random) -> Tally:
    """Files of records in every format."""
    rows = [
        {"id": f"r{k}", "question": f"What is {k} {SECRET}?", "answer": f"It is {k} {SECRET}.", "options": ["a", "b"]}
        for k in range(6)
    ]
    bare = [{name: row[name] for name in ("id", "question", "answer")} for row in rows]
    talks = [
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in rows
    ]
    lines, talk = ("".join(json.dumps(row) + "\n" for row in each).encode() for each in (rows, talks))
    cells = "id,question,answer\n" + "".join(f'{r["id"]},"{r["question"]}",{r["answer"]}\n' for r in rows)
    pq.write_table(pa.Table.from_pylist(bare), place / "whole.parquet")
    whole = {
        "a.jsonl": lines,
        "talk.jsonl": talk,
        "a.csv": cells.encode(),
        "a.json": json.dumps(rows).encode(),
        "a.parquet": (place / "whole.parquet").read_bytes(),
    }
    tally = Tally()
    for k in range(many):
        name = draw.choice(sorted(whole))
        path = place / f"fuzzed-{name}"
        if name.endswith("jsonl") and draw.random() < 0.5:
            many_rows = [mutate(row, draw) for row in draw.choice((rows, talks))]
            content = "".join(json.dumps(row) + "\n" for row in many_rows).encode()
        elif name == "a.json" and draw.random() < 0.5:
            content = json.dumps(mutate(rows, draw)).encode()
        else:
            content = damage(whole[name], draw)
        path.write_bytes(content)
        tally.try_one(f"data {k} {name}", lambda path=path: texts.load(path))
    return tally


def fuzz_reports(place: Path, many: int, draw: random.Random) -> Tally:
    """Folders of a finished run, one of whose files is damaged, with a manifest that fits or not."""
    from tests.report.reports import STEPS, report

    source, tally = place / "run", Tally()
    if not source.is_dir():
        source.mkdir()
        report(steps=STEPS).write(source)
        write_manifest(source)
    for k in range(many):
        folder = place / "fuzzed-run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        name = draw.choice(("report.json", "report.json", "steps.jsonl", "MANIFEST.json"))
        path = folder / name
        content = path.read_text()
        if draw.random() < 0.25:
            path.write_bytes(damage(content.encode(), draw))
        elif name == "steps.jsonl":
            lines = [json.loads(line) for line in content.splitlines()]
            path.write_text("".join(json.dumps(mutate(line, draw)) + "\n" for line in lines))
        else:
            path.write_text(json.dumps(mutate(json.loads(content), draw)))
        if name != "MANIFEST.json" and draw.random() < 0.8:
            (folder / "MANIFEST.json").unlink()
            write_manifest(folder)

        def read(folder: Path = folder) -> None:
            write_page([folder], folder.with_name("page.html"), lambda _: None)
            write_page([folder, folder], folder.with_name("both.html"), lambda _: None)
            Report.read(folder).write(folder)

        tally.try_one(f"reports {k} {name}", read)
    return tally


SEEDS = (
    "Finetune(objective=NPO(beta=0.1) + 2.0 * RetainKL(), adapter=Bounded(map='sine', rank=4), stop=Stop(level=3.0))",
    "Loss, MinK(fraction=0.4), Rouge(max_new_tokens=8)",
    "0.5 * Settle() + RetainNLL() + 3.0 * RetainKL()",
    "Quantize(bits=4)",
    "LoRA(rank=2, layers=(0, 1))",
    "a.b:C(x=1)",
)
PIECES = (
    "(", ")", "[", "]", "{", "}", ",", "=", "+", "*", "-", "**", ".", ":", "::", "'", '"', "\\", "\n", "\r", "\0", "\t",
    "\x1b[31m", " ", "#", "lambda: 1", "if", "for", "None", "True", "1e999", "1e308", "9" * 400, "0x10", "1j", "_",
    "\u00e9", "\u202e", "NPO", "npo", "Finetune", "beta=", "beta=beta=", "a:b", "os:system", "a.b.c:D", "**x", "*x",
    "x" * 300, "(" * 50, "-" * 50, "''", "f'{1}'", "b'x'", "...", "@", "not", "1_000", "\u00a0", "\uff08", "\ud800",
)  # fmt: skip


def text_of(draw: random.Random, seeds: tuple[str, ...]) -> str:
    made = list(draw.choice((*seeds, "")))
    for _ in range(draw.choice((1, 1, 2, 3, 8, 30))):
        at = draw.randrange(len(made) + 1)
        upto = min(len(made), at + draw.choice((0, 1, 3, 10)))
        made[at:upto] = (
            draw.choice(PIECES) * draw.choice((1, 1, 1, 2, 40)) if draw.random() < 0.7 else made[at:upto] * 2
        )
    return "".join(made)


def fuzz_notation(place: Path, many: int, draw: random.Random) -> Tally:
    """Texts in the notation, and what is nearly so."""
    tally = Tally()
    for k in range(many):
        text = text_of(draw, SEEDS)
        tally.try_one(f"notation {k} {ascii(text)[:200]}", lambda text=text: check_names(text))
        tally.try_one(f"notation {k} {ascii(text)[:200]}", lambda text=text: same_again(text))
    for text in (
        "N" * 1_000_000,
        "NPO(" + "b" * 1_000_000 + "=1)",
        "a:b " * 20_000,
        "a:b," * 20_000,
        "a" * 500_000 + ":b",
    ):
        tally.try_one(f"notation {text[:40]}", lambda text=text: check_names(text))
        tally.try_one(f"notation {text[:40]}", lambda text=text: same_again(text))
    return tally


def same_again(text: str) -> None:
    """What is read must be written so that it is read again."""
    made = parse(text)
    if not isinstance(made, tuple) and repr(parse(repr(made))) != repr(made):
        raise AssertionError("read back otherwise")


def fuzz_rules(place: Path, many: int, draw: random.Random) -> Tally:
    """Thresholds, and what is nearly so."""
    seeds = ("forget.Choice <= 0.25", "retain.Choice >= before - 0.05", "forget vs holdout.MinK <= ideal + 2 * 0.1")
    tally = Tally()
    for k in range(many):
        text = text_of(draw, seeds)
        tally.try_one(f"rules {k} {ascii(text)[:200]}", lambda text=text: Rule.parse(text))
    for text in ("a" * 1_000_000, "a.b <= " + "-" * 1_000_000 + "1", "a.b <= " + "1+" * 100_000 + "1", " " * 1_000_000):
        tally.try_one(f"rules {text[:40]}", lambda text=text: Rule.parse(text))
    return tally


KINDS: dict[str, Callable[[Path, int, random.Random], Tally]] = {
    "models": fuzz_models,
    "data": fuzz_data,
    "reports": fuzz_reports,
    "notation": fuzz_notation,
    "rules": fuzz_rules,
}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("folder", type=Path)
    asked.add_argument("kinds", nargs="*", choices=[*KINDS, []])
    asked.add_argument("--seed", default="0")
    asked.add_argument("--many", type=float, default=1.0, help="Share of the numbers above.")
    given = asked.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    found = 0
    for kind in given.kinds or KINDS:
        begun = time.monotonic()
        tally = KINDS[kind](given.folder, int(MANY[kind] * given.many), random.Random(f"{given.seed} {kind}"))
        found += len(tally.escapes)
        taken = time.monotonic() - begun
        print(f"{kind}: {tally.read} read, {tally.refused} refused, {len(tally.escapes)} escapes, {taken:.0f} s")
        same = Counter(escape.split(": ", 1)[1][:90] for escape in tally.escapes)
        for what, count in same.most_common(40):
            print(f"  {count} times {what}; e.g. {next(e for e in tally.escapes if what in e)[:300]}")
        sys.stdout.flush()
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
