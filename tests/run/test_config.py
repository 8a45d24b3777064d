"""A run's own file of options: what is written is read back, whatever it holds."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from expunge.run.config import write_toml

NAMES = st.from_regex(r"[a-z]+(-[a-z]+)?", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = TEXTS | st.booleans() | st.integers(-(2**62), 2**62) | st.lists(TEXTS)


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_written_is_read_back(options: dict):
    assert tomllib.loads(write_toml(options)) == options


def test_a_path_that_is_not_utf_8_spoils_no_finished_run():
    assert tomllib.loads(write_toml({"forget": "caf\udce9.jsonl"})) == {"forget": "caf?.jsonl"}
