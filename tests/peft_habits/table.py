"""All habits by subject, what comes of each, and the table of docs/peft.md."""

from __future__ import annotations

import warnings
from pathlib import Path

from expunge.errors import Refusal
from tests.peft_habits import files, layers, misfits, training, use
from tests.peft_habits.kinds import BOUNDED, LORA, Habit, Kind

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"
MARKS = ("<!-- habits -->\n", "<!-- end of habits -->\n")
HABITS = {
    "Which layers": layers.HABITS,
    "Using it": use.HABITS,
    "Training": training.HABITS,
    "Files": files.HABITS,
    "What should not be loaded": misfits.HABITS,
}


def attempt(habit: Habit, kind: Kind) -> str:
    """What comes of a habit: that it works, or how it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return habit(kind)
        except Refusal:
            return "refused, with the reason"
        except Exception as error:  # what peft raises is what the table tells
            return f"{type(error).__name__}"


def table() -> str:
    """The rows of all habits, for docs/peft.md."""
    lines = []
    for title, habits in HABITS.items():
        lines += [f"| **{title}** | | |"]
        lines += [f"| {text} | {attempt(habit, BOUNDED)} | {attempt(habit, LORA)} |" for text, habit in habits]
    return "\n".join(["| | `Bounded` | peft's LoRA |", "|---|---|---|", *lines]) + "\n"


def insert(page: str, rows: str, marks: tuple[str, str] = MARKS) -> str:
    """The page with these rows between the marks."""
    before, _, rest = page.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    return f"{before}{marks[0]}{rows}{marks[1]}{after}"
