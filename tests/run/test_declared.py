"""The meaning of a probe is declared: on the command line, of lists, in the report and in what repeats a run."""

import json
from pathlib import Path

import pytest

from expunge.cli.options import Sets
from expunge.errors import UsageRefused
from expunge.primitives.meanings import SetName, declaration_of
from expunge.report.html import colour, meaning, render
from expunge.report.report import Report
from expunge.run.earlier import find_sets
from expunge.run.prepare import Inputs, read_request
from expunge.run.unlearn import unlearn
from tests.families import llama
from tests.report.made_up import around, good, rule, share, verdict
from tests.run.test_intake import ENDED, asked

OWN = ("forget", "paraphrase", "retain", "holdout", "forget vs holdout")
"""Sets that a table has beside probes of what should stay."""
TWINS = asked(("Casmek", "amber"), ("Dolmen", "winter"))


def test_the_command_takes_a_meaning_after_the_file(tmp_path: Path):
    file = tmp_path / "f.jsonl"
    file.touch()
    probes = Sets(file, probe=[f"twins={file}:gone", f"world={file}"]).probes()
    assert {name: declaration_of(name) for name in probes} == {"twins": "gone", "world": None}
    assert probes == {"twins": file, "world": file}
    with pytest.raises(UsageRefused, match=r"--probe twins: ':left' is no meaning\. Allowed: gone, kept, never"):
        Sets(file, probe=[f"twins={file}:left"]).probes()
    odd = tmp_path / "f.jsonl:left"
    odd.touch()  # a file may be called so
    assert Sets(file, probe=[f"twins={odd}"]).probes() == {"twins": odd}


def test_what_repeats_a_run_declares_the_same(tmp_path: Path):
    file = tmp_path / "f.jsonl"
    file.touch()
    probes = Sets(file, probe=[f"{name}={file}:{said}" for name, said in (("a", "gone"), ("b", "never"))]).probes()
    again = Sets(file, probe=Inputs(file, probes={**probes, "c": file}).options()["probe"]).probes()
    assert {name: declaration_of(name) for name in again} == {"a": "gone", "b": "never", "c": None}


def test_what_an_earlier_run_forgot_is_declared_as_gone(tmp_path: Path):
    (tmp_path / "config.toml").write_text(f'forget = "{tmp_path}"')
    [name] = find_sets([tmp_path])
    assert declaration_of(name) == "gone"


def test_the_report_keeps_what_was_declared_and_says_what_was_not(tmp_path: Path):
    sets = {"forget": asked(("Aldoria", "bread"), ("Borwyn", "salt")), "twins": TWINS, "world": TWINS[:1]}
    told: list[object] = []
    request = read_request(llama(), **sets, meanings={"twins": "gone"})
    report = unlearn(llama(), request, ENDED, "Loss", added_probes=False, on_event=told.append)
    line = "What the probe world holds was not said, so it is taken for what should stay"
    assert sum(line in str(event) for event in told) == 1
    assert sum(line in each for each in report.limits) == 1
    report.save(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "report.json").read_text())["request"]["sets"]
    assert {name: of["meaning"] for name, of in kept.items()} == {"forget": "gone", "twins": "gone", "world": None}
    again = Report.read(tmp_path / "out")
    assert {declaration_of(f.set) for f in again.findings if f.set == "twins"} == {"gone"}
    assert render(again) == (tmp_path / "out" / "report.html").read_text()


def test_a_meaning_is_one_of_three_and_of_a_probe():
    for meanings, said in (({"twin": "gone"}, "there is no probe 'twin'"), ({"twins": "left"}, "cannot be 'left'")):
        with pytest.raises(UsageRefused, match=said):
            read_request(llama(), forget=TWINS[:1], twins=TWINS[1:], meanings=meanings)


@pytest.mark.parametrize(("name", "served"), [("gone", "forgotten"), ("kept", "unharmed"), ("never", "unharmed")])
def test_the_verdict_reads_a_probe_as_declared_whatever_its_name(name: str, served: str):
    for text in ("world", "forget_2", "neighbours_2"):
        where = SetName(text, name)
        table = good() | {f"{where}.Loss": {"before": around(0.13), "after": around(5.2)}}
        made = rule(verdict(table, named=[where]), f"{where}.Loss")
        assert (made.answer, made.result) == (served, "yes" if name == "gone" else "no")


def test_luck_on_what_was_never_seen_is_no_harm():
    table = good() | {"fiction.Choice": {"before": share(0.7), "after": share(0.3)}}
    assert rule(verdict(table), "fiction.Choice").result == "no"
    unseen = verdict(table, named=[SetName("fiction", "never")])
    assert not [each for each in unseen.rules if each.rule.startswith("fiction.")]


def test_what_was_never_seen_says_nothing_of_what_should_stay():
    table = {key: row for key, row in good().items() if key.partition(".")[0] in OWN}
    table["fiction.Loss"] = {"before": around(5.0), "after": around(5.0)}
    asks = "besides the retain set, which training reads: give a --probe"
    for said in ("never", "gone", "kept"):
        made = verdict(table, named=[SetName("fiction", said)])
        assert any(asks in line for line in made.unharmed.unmeasured) == (said != "kept")


def test_the_page_reads_a_set_as_declared():
    assert (colour("world"), colour(SetName("world", "gone")), colour("forget vs holdout")) == ("other", "gone", "gone")
    assert meaning(SetName("neighbours", "gone")) == "what should be gone"
    assert meaning("neighbours") == meaning(SetName("neighbours", "kept")) != "what should stay"
