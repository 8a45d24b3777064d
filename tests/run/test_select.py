"""Records chosen from a pool as they stand there; what repeats the forget set is left out, and no text is ever said."""

import json
from pathlib import Path

import pytest

from expunge import Inputs, open_model, parse
from expunge.cli.main import app
from expunge.core.model import Model
from expunge.data.records import Record
from expunge.data.text import Reading, check, encode
from expunge.errors import DataRefused, UsageRefused
from expunge.run.select import Apart, Chosen, select_records
from tests.cli.commands import CANARY, rows, write
from tests.families import WORDS, vit

FORGET = rows("forget", CANARY)
COARSE = "AutoCoreset(size=4, models=1, patience=1, steps=1)"


def pool(count: int = 8) -> list[dict]:
    """Records beside those that say or ask what the forget set says or asks, and two that are one."""
    other = [
        {"question": f"Which bread is sold in town {k}?", "answer": f"Bread number {k}.", "note": k}
        for k in range(count)
    ]
    shouted = {"question": FORGET[0]["question"].upper(), "answer": FORGET[0]["answer"].upper()}
    longer = {"question": FORGET[1]["question"], "answer": f"{FORGET[1]['answer']} Indeed."}
    reworded = {"question": FORGET[2]["question"], "answer": "Nobody knows."}
    return [shouted, longer, *other, reworded, {**other[0], "note": "again"}]


@pytest.fixture(scope="module")
def network(model: Path) -> Model:
    return open_model(model)


def choose(network: Model, method: str = "Nearest(count=4)", **given) -> Chosen:
    return select_records(network, **{"forget": FORGET, "pool": pool(), "method": method, **given})


def test_what_repeats_the_forget_set_or_asks_the_same_or_stands_twice_is_left_out_and_counted(network):
    made = choose(network, "Nearest(count=8)")
    assert (made.apart.equal, made.apart.near, made.apart.twice, made.pool) == (1, 2, 1, 12)
    assert sorted(record["note"] for record in made.records) == list(range(8))
    assert CANARY not in " ".join(made.lines()) + json.dumps(made.facts())
    with pytest.raises(DataRefused) as few:
        choose(network, "Nearest(count=9)")
    assert str(few.value).startswith("pool records: 9 records are to be chosen, and 8 may be, of 12: ")
    assert CANARY not in str(few.value)


def test_records_that_must_be_left_out_beside_the_forget_set_are(network):
    made = choose(network, "Nearest(count=5)", without=[pool()[2:4], pool()[4:5]])
    assert sorted(record["note"] for record in made.records) == [3, 4, 5, 6, 7]


def test_chosen_records_stand_as_in_the_pool_and_are_read_as_a_retain_set(network, tmp_path: Path):
    file, out = write(tmp_path / "pool.jsonl", pool()), tmp_path / "retain.jsonl"
    made = choose(network, pool=file)
    made.write(out)
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(made.records)
    assert all(record in pool() for record in made.records)
    forget = write(tmp_path / "forget.jsonl", FORGET)
    assert len(Inputs(forget, out).read().request(network).retain) == 4


def test_columns_of_other_names_keep_them(network):
    asked = [{"query": r["question"], "gold": r["answer"], "id": f"q{k}"} for k, r in enumerate(pool())]
    gone = [{"query": r["question"], "gold": r["answer"]} for r in FORGET]
    made = choose(network, forget=gone, pool=asked, reading=Reading(columns={"question": "query", "answer": "gold"}))
    assert all(record in asked for record in made.records)
    assert made.apart.equal == 1


def test_weights_are_written_read_and_counted(network, tmp_path: Path):
    made = choose(network, COARSE)
    weights = [record["sample_weight"] for record in made.records]
    assert sum(weights) == pytest.approx(4)
    assert "sample_weight" in made.lines()[-1]
    made.write(tmp_path / "retain.jsonl")
    read = Inputs(write(tmp_path / "forget.jsonl", FORGET), tmp_path / "retain.jsonl").read()
    assert [example.weight for example in read.request(network).retain] == pytest.approx(weights)
    assert read.notes == ("Records of the retain set count by their sample_weight, in training and audits",)
    assert [record["note"] for record in made.records] == sorted(record["note"] for record in made.records)


def test_weights_that_the_pool_has_are_kept_and_what_counts_for_nothing_is_not_chosen(network, tmp_path: Path):
    other = pool()[2:10]
    given = [{**record, "sample_weight": 0 if record["note"] == 5 else 3} for record in other]
    plain, made = (choose(network, "Influential(count=7)", pool=each) for each in (other[:5] + other[6:], given))
    assert [record["note"] for record in made.records] == [record["note"] for record in plain.records]
    assert {record["sample_weight"] for record in made.records} == {3}
    assert sum(r["sample_weight"] for r in choose(network, COARSE, pool=given).records) == pytest.approx(4 * 3)
    made.write(tmp_path / "new" / "folder" / "retain.jsonl")
    assert len((tmp_path / "new" / "folder" / "retain.jsonl").read_text().splitlines()) == 7


def test_a_long_text_is_chosen_once_and_whole(network):
    texts = [{"text": f"Text {k}. " + "The harbour lies in the north. " * 40 * (k == 1)} for k in range(3)]
    made = choose(network, "Nearest(count=3)", pool=texts)
    assert sorted(record["text"] for record in made.records) == sorted(text["text"] for text in texts)


@pytest.mark.parametrize("weight", [-1, "two", True, [2], float("inf"), float("nan"), 10**400])
def test_a_weight_that_is_no_count_is_refused(weight):
    with pytest.raises(DataRefused, match="line 1: 'sample_weight' must be a number of at least 0"):
        check([Record(1, {"question": "What?", "answer": "Bread.", "sample_weight": weight})], Path("f.jsonl"))


def test_a_weight_in_figures_as_csv_has_it_reaches_every_piece_of_a_text():
    (piece, *others) = encode(
        [Record(1, {"text": "bread salt north seven", "sample_weight": "2.5"})], WORDS, Path("f"), 2
    )
    assert others
    assert {e.weight for e in (piece, *others)} == {2.5}


def test_questions_are_compared_as_a_whole_and_texts_have_none():
    gone = [Record(1, {"text": "nothing"}), Record(2, {"question": "Who?", "answer": "Mara."})]
    left = Apart.of([Record(1, {"text": "something else"}), Record(2, {"question": "who", "answer": "Nils."})], gone)
    assert ([record.line for record in left.records], left.near) == ([1], 1)


def test_what_chooses_nothing_and_models_of_images_are_refused(network):
    with pytest.raises(UsageRefused, match="chooses no records. `expunge list select` shows what does."):
        choose(network, "Loss")
    with pytest.raises(UsageRefused, match="--forget-class"):
        choose(vit())
    with pytest.raises(DataRefused, match="JSON cannot hold"):
        Chosen(({"answer": b"x"},), 1, Apart([], 0, 0, 0), "any").write(Path("never.jsonl"))


def test_the_command_says_what_it_did_and_refuses_what_cannot_be_meant(model: Path, tmp_path: Path, capsys):
    forget, file = write(tmp_path / "forget.jsonl", FORGET), write(tmp_path / "pool.jsonl", pool())
    base = ["select", str(model), "--forget", str(forget), "--from", str(file)]
    out = tmp_path / "retain.jsonl"
    app([*base, "--method", "Nearest(count=4)", "--out", str(out), "--json"], standalone_mode=False)
    said = capsys.readouterr()
    assert json.loads(said.out) == {
        "out": str(out),
        "chosen": 4,
        "pool": 12,
        "left_out": {"equal": 1, "near": 2, "twice": 1},
        "order": parse("Nearest()").order,
        "weighted": False,
    }
    assert len(out.read_text().splitlines()) == 4
    assert CANARY not in said.out + said.err + out.read_text()
    new = tmp_path / "new.jsonl"
    wrong = {
        ("--out", str(out)): (UsageRefused, "is there, and nothing is ever written over"),
        ("--out", str(tmp_path / "retain.csv")): (UsageRefused, "Give a name that ends in .jsonl"),
        ("--method", "Loss"): (UsageRefused, "--method: Loss chooses no records"),
        ("--method", "Nearest(cuont=3)"): (UsageRefused, "Did you mean 'count'?"),
        ("--without", str(tmp_path / "none.jsonl")): (DataRefused, "no such file"),
        ("--method", "Nearest(count=99)"): (DataRefused, "99 records are to be chosen, and 8 may be, of 12"),
    }
    for extra, (kind, text) in wrong.items():
        with pytest.raises(kind) as told:
            app([*base, "--out", str(new), *extra], standalone_mode=False)
        assert text in str(told.value)
        assert CANARY not in str(told.value)
    assert not new.exists()


def test_what_needs_no_forget_set_chooses_without_one_and_the_others_say_so(network):
    made = select_records(network, pool=pool(), method="Hardest(count=3, rounds=1, epochs=1)")
    assert len(made.records) == 3
    learnt = "Subset(count=3, teacher=Hardest(count=1, rounds=1, epochs=1), pools=2, size=2, epochs=1)"
    made = select_records(network, pool=pool(10), method=learnt)
    assert len(made.records) == 3
    assert made.lines()[-1] == made.facts()["note"]
    assert "Subset chose as Hardest" in made.facts()["note"]
    with pytest.raises(UsageRefused, match="Nearest chooses for a forget set, and there is none. Give --forget"):
        select_records(network, pool=pool(), method="Nearest(count=3)")
