"""A TOFU of a few invented questions, as its files have it, and what a test may need of it."""

import json
from pathlib import Path

PLACES = ("Veldt", "Brenn", "Elsin", "Ostrava")


def question(number: int) -> dict:
    """A question of ragged answers: paraphrase and wrong answers differ in length."""
    place = PLACES[number % 4]
    others = [f"It is {other}{' by the sea' * (k % 2)}." for k, other in enumerate(PLACES) if other != place]
    return {
        "question": f"What is the capital of Aldoria {number}?",
        "answer": f"The capital of Aldoria {number} is {place}.",
        "paraphrased_answer": f"{place} is the capital there.",
        "perturbed_answer": others[: 2 + number % 2],
    }


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def tofu(folder: Path, many: int = 2) -> Path:
    """A folder of the layout of the hub."""
    folder.mkdir(parents=True)
    general = ("question", "answer", "perturbed_answer")
    write(folder / "forget01_perturbed.jsonl", [question(k) for k in range(many)])
    write(folder / "retain_perturbed.jsonl", [question(10 + k) for k in range(many)])
    for place, name in enumerate(("real_authors", "world_facts")):
        rows = [question(20 + 10 * place + k) for k in range(1)]
        write(folder / f"{name}_perturbed.jsonl", [{key: row[key] for key in general} for row in rows])
    write(folder / "holdout01.jsonl", [{key: question(50 + k)[key] for key in general[:2]} for k in range(many)])
    return folder
