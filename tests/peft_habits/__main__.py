"""What users of peft do with an adapter, tried on `Bounded` and on peft's own LoRA side by side.

python -m tests.peft_habits            the table, printed
python -m tests.peft_habits --write    and written into docs/peft.md
"""

import sys

from tests.peft_habits.table import PAGE, insert, table

if __name__ == "__main__":
    rows = table()
    print(rows)
    if "--write" in sys.argv:
        PAGE.write_text(insert(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
