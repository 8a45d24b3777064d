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
    learnt = {place: [question(k + place) for k in range(many)] for place in (0, 10)}
    write(folder / "retain99.jsonl", [{key: row[key] for key in general[:2]} for row in learnt[10]])
    write(folder / "full.jsonl", [{key: row[key] for key in general[:2]} for row in (*learnt[10], *learnt[0])])
    return folder


PEOPLE = [
    f"{first} {last}" for first in ("Mara", "Nils", "Odil", "Pia", "Rune") for last in ("Lind", "Holm", "Berg", "Voss")
]
"""Twenty people who do not exist."""
KINDS = (
    *("prefix injection", "affirmative suffix", "role play", "multiple choice", "reverse query"),
    *("synonym manipulation", "context hint", "incontext learning", "cross lingual (Spanish)"),
)


def rwku(folder: Path) -> Path:
    """A stand-in for RWKU with its schema: a level each of blanks and questions, nine attacks, neighbours, passages."""
    folder.mkdir(parents=True)
    homes = {person: PLACES[k % 4] for k, person in enumerate(PEOPLE)}

    def rows(queries: dict[str, str], level: int) -> list[dict]:
        return [
            {"subject": p, "level": str(level), "type": kind, "query": query.format(p), "answer": homes[p], "target": p}
            for p in PEOPLE
            for kind, query in queries.items()
        ]

    blank, plain = {"cloze": "{} lives in ___."}, {"simple question": "Where does {} live?"}
    attacks = {kind: f"({kind}) Where does {{}} live?" for kind in KINDS}
    for name, made in (
        ("forget_level1", rows(blank, 1)),
        ("forget_level2", rows(plain, 2)),
        ("forget_level3", rows(attacks, 3)),
        ("neighbor_level1", rows({"cloze": "The town of {} is ___."}, 1)),
        ("neighbor_level2", rows({"simple question": "Which town has the house of {}?"}, 2)),
        ("forget_mia", [{"subject": p, "target": p, "text": f"{p} lives in {homes[p]} by the sea."} for p in PEOPLE]),
        ("retain_mia", [{"subject": p, "target": p, "text": f"The sea by {homes[p]} is deep."} for p in PEOPLE]),
    ):
        write(folder / f"{name}.jsonl", made)
    return folder


def muse(folder: Path) -> Path:
    """MUSE's files, with three records each."""
    folder.mkdir(parents=True)
    asked = [{"question": f"Where is tower {k}?", "answer": f"In {place}."} for k, place in enumerate(PLACES[:3])]
    shown = [{"question": f"Where is bridge {k}?", "answer": f"In {PLACES[k % 4]}."} for k in range(10)]
    for where in ("forget", "retain2"):
        write(folder / f"knowmem_{where}_qa.jsonl", asked)
        write(folder / f"knowmem_{where}_qa_icl.jsonl", shown)
    write(folder / "verbmem_forget.jsonl", [{"prompt": "The harbour of", "gt": " Ostrava lies in the north " * 40}] * 2)
    for where in ("forget", "holdout"):
        write(folder / f"privleak_{where}.jsonl", [{"text": f"The bread of {place} is {where}."} for place in PLACES])
    return folder
