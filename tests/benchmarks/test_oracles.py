"""Results of several runs held against kept results of retrained models."""

import math
from pathlib import Path

import pytest
import torch

from expunge.benchmarks._job import Job, Measured
from expunge.benchmarks._oracles import Oracles
from expunge.benchmarks._show import RENDER, gather, markdown
from expunge.benchmarks._values import IDENTITY, Column, Values
from expunge.benchmarks.cifar import Cifar
from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.klom import klom
from expunge.primitives.ulira import ulira

RECORDS = 20


def margins(seed: int, where: str, surer: float = 0.0, records: int = RECORDS) -> torch.Tensor:
    """Of right answers, N(0, 1); those of the forgotten are surer by so much."""
    generator = torch.Generator().manual_seed(10 * seed + ("forget", "retain", "test").index(where))
    return torch.randn(records, generator=generator, dtype=torch.float64) + surer * (where == "forget")


def result(
    out: Path, seed: int, surer: float = 0.0, records: int = RECORDS, draw: int = 0, identity: float | None = None
) -> Path:
    """The folder of a made-up model."""
    rows = []
    for where in ("forget", "retain", "test"):
        losses = -torch.nn.functional.logsigmoid(margins(seed, where, surer, records))
        for k, loss in enumerate(losses.tolist()):
            rows += [(Column(where, name), k, v) for name, v in (("right", 1.0), ("loss", loss), ("entropy", 0.1 * k))]
        if identity is not None:
            rows += [(Column(where, IDENTITY), k, identity + k) for k in range(records)]
    made = Measured(Values.collect(rows), {}, "", {}, {})
    made.write(Job(Cifar(task="random", draw=draw), "made up", out), out)
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("oracles")
    for seed in range(8):
        result(place / "oracles" / str(seed), seed)
    for seed in range(4):
        result(place / "same" / f"seed-{seed}", seed)
        result(place / "surer" / f"seed-{seed}", 100 + seed, surer=50.0)
    return place


def held(folders: Path, name: str) -> dict[tuple[str, str], float]:
    table = gather(sorted((folders / name).iterdir()), Oracles.read(folders / "oracles"))
    return {key[:2]: number.value for key, number in table.runs[0].together.items()}


def test_runs_that_are_the_floors_models_have_the_floors_numbers(folders: Path):
    found = held(folders, "same")
    assert len(found) == 18
    for where in ("forget", "retain", "test"):
        for name in ("KLoM, 95 %", "KLoM, mean", "U-LiRA"):
            assert found[name, where] == found[f"{name}, floor", where]
    assert 0 < found["KLoM, mean", "forget"] < found["KLoM, 95 %", "forget"] <= math.log(1e5)


def test_runs_far_from_every_retrained_model_are_at_the_most_and_told_by_each_record(folders: Path):
    """Four models whose margins are 50 above: of 20 bins they share none, so KLoM is ln 1e5 less their spread."""
    found = held(folders, "surer")
    assert found["U-LiRA", "forget"] == 1.0
    assert found["KLoM, 95 %", "forget"] == pytest.approx(math.log(1e5), abs=1e-6)
    # At the most where all four lie in one bin; two bins of 1 and 3 cost 0.56 nats, of 2 and 2 0.69.
    assert math.log(1e5) - math.log(2) <= found["KLoM, mean", "forget"] <= math.log(1e5)
    assert found["KLoM, mean", "retain"] < 11
    assert found["U-LiRA", "retain"] < 0.8
    assert found["KLoM, mean, floor", "forget"] == held(folders, "same")["KLoM, mean, floor", "forget"]


def test_runs_are_held_against_the_second_half_record_by_record(folders: Path):
    ours = torch.stack([margins(100 + seed, "test") for seed in range(4)])
    floor, theirs = (torch.stack([margins(seed, "test") for seed in half]) for half in (range(4), range(4, 8)))
    found = held(folders, "surer")
    assert found["KLoM, mean", "test"] == pytest.approx(klom(ours, theirs).mean().item())
    assert found["KLoM, 95 %, floor", "test"] == pytest.approx(klom(floor, theirs).quantile(0.95).item())
    assert found["U-LiRA", "test"] == pytest.approx(ulira(ours, theirs, pooled=True).mean().item())


def test_the_table_has_them_once_for_all_runs_of_a_column(folders: Path):
    runs = [*sorted((folders / "same").iterdir()), folders / "oracles" / "0"]
    table = gather(runs, Oracles.read(folders / "oracles"))
    row = next(line for line in markdown(table).splitlines() if line.startswith("| U-LiRA | forget | oracles"))
    assert row.split("|")[4].strip() == f"{held(folders, 'same')['U-LiRA', 'forget']:.2f}"
    assert row.split("|")[5].strip() == "–"  # one run is no ensemble
    assert "95th percentile of KLoM, in nats. Of the records of 'forget'; these runs against 4 retrained ones." in (
        RENDER[".csv"](table)
    )
    assert "4 other retrained models against 4 retrained ones" in markdown(table)


def test_what_cannot_be_held_against_them_is_refused(folders: Path, tmp_path: Path):
    few = [folders / "same" / f"seed-{k}" for k in (0, 1)]
    with pytest.raises(UsageRefused, match=r"a column needs 3 runs or more .* \(--seeds 0-9\)"):
        gather(few, Oracles.read(folders / "oracles"))
    for seed in range(5):
        result(tmp_path / "few" / str(seed), seed)
    with pytest.raises(DataRefused, match="holds the results of 5 models, and at least 6 are needed"):
        Oracles.read(tmp_path / "few")
    result(tmp_path / "few" / "5", 5, draw=1)
    with pytest.raises(DataRefused, match="the models were not asked the same"):
        Oracles.read(tmp_path / "few")
    for seed in range(6):
        result(tmp_path / "shorter" / str(seed), seed, records=RECORDS - 1)
        result(tmp_path / "other" / str(seed), seed, draw=1)
    same = sorted((folders / "same").iterdir())
    with pytest.raises(DataRefused, match="shorter: the set 'forget' has other records there than in the runs"):
        gather(same, Oracles.read(tmp_path / "shorter"))
    with pytest.raises(UsageRefused, match="Numbers of different definitions cannot stand in one table"):
        gather(same, Oracles.read(tmp_path / "other"))


def test_records_are_known_again_where_a_selector_reads_the_model(folders: Path, tmp_path: Path):
    for seed in range(6):
        result(tmp_path / "alike" / str(seed), seed, identity=7.0)
        result(tmp_path / "others" / str(seed), seed, identity=8.0)
    runs = [result(tmp_path / "runs" / f"seed-{seed}", 100 + seed, identity=7.0) for seed in range(3)]
    assert gather(runs, Oracles.read(tmp_path / "alike")).runs[0].together
    with pytest.raises(DataRefused, match=r"has other records there .* where a selector reads the model"):
        gather(runs, Oracles.read(tmp_path / "others"))
    with pytest.raises(DataRefused, match="has other records there"):
        gather(runs, Oracles.read(folders / "oracles"))


def test_the_command_shows_them(folders: Path, expunge):
    runs = sorted((folders / "same").iterdir())
    said = expunge("bench", "show", *runs, "--oracles", folders / "oracles")
    assert said.code == 0
    assert "| KLoM, mean, floor | test | oracles |" in said.out
    assert expunge("bench", "show", *runs, "--oracles", folders / "nothing").code == 3
