"""`--benchmark NAME --split SPLIT` stands for the benchmark's own files."""

from pathlib import Path

import pytest

from expunge.cli.benchmarks import Named, fill
from expunge.cli.options import Sets
from expunge.errors import DataRefused, Refusal, UsageRefused
from expunge.run.probes import split_probe
from tests.benchmarks.made_up import tofu


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tofu(tmp_path_factory.mktemp("benchmarks") / "tofu")


def test_a_split_to_forget_fills_every_set_that_is_not_given(folder: Path, monkeypatch):
    made = fill(Sets(benchmark=f"TOFU={folder}", split="forget01", probe=["world_facts=mine.jsonl"]))
    assert (made.forget, made.retain, made.holdout) == tuple(
        folder / f"{name}.jsonl" for name in ("forget01_perturbed", "retain99", "holdout01")
    )
    probes = [split_probe(text) for text in made.probe]
    assert probes == [("real_authors", folder / "real_authors_perturbed.jsonl"), ("world_facts", Path("mine.jsonl"))]
    assert probes[0][0].meaning == "kept"
    monkeypatch.setenv("EXPUNGE_DATA", str(folder.parent))
    own = fill(Sets(benchmark="tofu", split="forget01", retain=Path("r.jsonl"), holdout=Path("h.jsonl")))
    assert (own.forget, own.retain, own.holdout) == (made.forget, Path("r.jsonl"), Path("h.jsonl"))


def test_a_split_to_learn_is_a_file_or_what_another_leaves_of_all(folder: Path):
    def learn(split: str):
        return Named.read(f"tofu={folder}", split).to_learn()

    assert learn("full") == (folder / "full.jsonl", ())
    assert learn("retain99") == (folder / "retain99.jsonl", ())
    (folder / "retain99.jsonl").rename(folder / "moved.jsonl")
    try:
        assert learn("retain99") == (folder / "full.jsonl", (folder / "forget01_perturbed.jsonl",))
        own = fill(Sets(benchmark=f"tofu={folder}", split="forget01", retain=Path("mine.jsonl")))
        assert own.retain == Path("mine.jsonl")
        with pytest.raises(DataRefused, match="holds no retain99"):
            fill(Sets(benchmark=f"tofu={folder}", split="forget01"))
    finally:
        (folder / "moved.jsonl").rename(folder / "retain99.jsonl")


@pytest.mark.parametrize(
    ("given", "kind", "said"),
    [
        ({}, UsageRefused, "Give --forget FILE, or --benchmark NAME --split SPLIT"),
        ({"benchmark": "tofu=HERE"}, UsageRefused, "needs --split, such as forget05"),
        ({"split": "forget01"}, UsageRefused, "--benchmark '' is not known. Allowed: cifar, lume, muse"),
        ({"benchmark": "toofu=HERE", "split": "forget01"}, UsageRefused, "'toofu' is not known"),
        ({"benchmark": "tofu=HERE", "split": "forget02"}, UsageRefused, "Allowed: forget01, forget05, forget10"),
        ({"benchmark": "tofu=HERE", "split": "../x"}, UsageRefused, "needs --split"),
        ({"benchmark": "rwku=HERE", "split": "forget"}, UsageRefused, "name files instead"),
        ({"benchmark": "tofu=HERE", "split": "forget05"}, DataRefused, "holds no forget05_perturbed or forget05"),
        ({"benchmark": "tofu=nowhere", "split": "forget01"}, DataRefused, "--benchmark tofu=nowhere: no such folder"),
        ({"benchmark": "tofu", "split": "forget01"}, DataRefused, "Give --benchmark tofu=FOLDER with the files"),
        ({"forget": "f", "benchmark": "tofu=HERE", "split": "forget01"}, UsageRefused, "not both"),
    ],
)
def test_what_names_no_files_is_refused_in_a_line(
    given: dict, kind: type[Refusal], said: str, folder: Path, monkeypatch
):
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    named = {key: value.replace("HERE", str(folder)) for key, value in given.items()}
    with pytest.raises(kind, match=said):
        fill(Sets(**named))
