"""Texts that a run keeps sealed: opened by the forget file as it was, by nothing else, never in the run's own page."""

from dataclasses import replace

import pytest

from expunge.errors import DataRefused, UsageRefused
from expunge.report.pages import write_page
from expunge.report.report import Sample, Samples
from expunge.report.sealed import SEALED, write_sealed
from expunge.runtime.sealed import seal, secret_of, unseal
from tests.report.reports import Page, report

SECRET, TEXT = b"0" * 32, b"Where does Mira live? In Ostrava."
ITEM = Sample("forget", "forget-01", "Where does Mira live?", "In Ostrava.", "Ostrava.", "No idea.")


def test_what_is_sealed_comes_back_by_its_secret_and_by_no_other():
    sealed = seal(TEXT, SECRET)
    assert unseal(sealed, SECRET) == TEXT
    assert unseal(sealed, b"1" + SECRET[1:]) is None
    assert seal(TEXT, SECRET) == sealed  # equal runs write equal folders
    head, body = sealed.split("\n", 1)
    for place in (0, 50, len(body) - 3):  # in the salt, and in what is hidden
        other = "A" if body[place] != "A" else "B"
        assert unseal(f"{head}\n{body[:place]}{other}{body[place + 1 :]}", SECRET) is None
    assert unseal("not sealed", SECRET) is None


def test_two_texts_under_one_secret_share_no_key():
    one, other = (seal(text, SECRET).split("\n")[1] for text in (TEXT, TEXT[:-1] + b"!"))
    assert one[44:60] != other[44:60]  # the first letters, which are equal, after the salt


def test_a_folders_secret_is_of_all_that_is_in_it(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"one")
    first = secret_of(tmp_path)
    assert secret_of(tmp_path) == first
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / "2.png")
    assert secret_of(tmp_path) != first


@pytest.fixture
def run(tmp_path):
    """A finished run whose texts are sealed, and its forget file."""
    forget, texts = tmp_path / "forget.jsonl", Samples(True, (ITEM,))
    forget.write_text('{"question": "Where does Mira live?", "answer": "In Ostrava."}')
    made = replace(report(), samples=texts.hide())
    out = made.save(tmp_path / "out")
    write_sealed(texts, forget, out)
    made.sign(out)
    return out, forget


def told(run, tmp_path, **changed):
    lines = []
    page = write_page([run], tmp_path / "open.html", lines.append, **changed)
    return Page(page.read_text()).text, lines


def test_the_owner_opens_the_texts_and_the_runs_own_files_stay_without_them(run, tmp_path):
    out, forget = run
    text, _ = told(out, tmp_path, texts=forget)
    assert "Asked Where does Mira live? Right answer In Ostrava. Before Ostrava. After No idea." in text
    for file in out.iterdir():
        assert not any(word in file.read_bytes() for word in (b"Mira", b"Ostrava", b"No idea"))
    text, _ = told(out, tmp_path)
    assert "Ostrava" not in text
    assert "--texts FORGET_FILE" in text


def test_another_file_opens_nothing_and_a_folder_without_them_is_whole(run, tmp_path):
    out, forget = run
    with pytest.raises(UsageRefused, match="outside of the runs' folders"):
        write_page([out], None, texts=forget)
    with pytest.raises(DataRefused, match="no such file"):
        told(out, tmp_path, texts=tmp_path / "none.jsonl")
    forget.write_text(forget.read_text() + "\n")
    with pytest.raises(DataRefused, match="opens the texts of none of these runs"):
        told(out, tmp_path, texts=forget)
    (out / SEALED).unlink()  # who wants it gone deletes it
    assert told(out, tmp_path)[1] == []
