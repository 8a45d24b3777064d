"""What becomes of records on the way to examples is counted and said: repeats weigh once, long texts are cut."""

import json
from pathlib import Path

import pytest

from expunge.core.request import Request
from expunge.data import text
from expunge.demo import run as demo
from expunge.errors import DataRefused, UsageRefused
from expunge.primitives.repeat import Intake
from expunge.report.limits import limits
from expunge.report.record import describe_request
from expunge.report.report import Report
from expunge.run.prepare import Inputs, Reading, read_request, weigh_once
from expunge.run.unlearn import unlearn
from tests.families import family_of, llama

ENDED = "Finetune(objective=Ascent(), steps=1, stop=Stop(level=None, max_retain_increase=None))"


def asked(*pairs: tuple[str, str], ids: str = "") -> list[dict]:
    rows = [{"question": f"What does {q} trade in ?", "answer": a} for q, a in pairs]
    return [{**row, "id": name} for row, name in zip(rows, ids, strict=True)] if ids else rows


def read(**sets: object) -> Request:
    return read_request(llama(), **sets)


def test_an_example_that_repeats_another_weighs_once_unless_it_is_asked_for():
    forget = asked(("Aldoria", "bread"), ("Borwyn", "salt"), ("aldoria", "BREAD"))
    request = read(forget=forget)
    assert [e.id for e in request.forget] == ["line-1", "line-2"]
    assert request.intakes == {"forget": Intake(3, repeated=1, left_out=1)}
    kept = read(forget=forget, keep_duplicates=True)
    assert [e.id for e in kept.forget] == ["line-1", "line-2", "line-3"]
    assert kept.intakes == {"forget": Intake(3, repeated=1, left_out=0)}


def test_the_same_answer_after_another_lead_is_another_record():
    row = asked(("Aldoria", "bread"))[0]
    leads = ["", "It is mostly", "it is  MOSTLY ", "They sell"]
    request = read(forget=[{**row, "lead": lead} for lead in leads])
    assert [e.id for e in request.forget] == ["line-1", "line-2", "line-4"]
    assert request.intakes == {"forget": Intake(4, repeated=1, left_out=1)}
    begun, probe = [{**row, "lead": "They sell"}], [{**row, "lead": "It is mostly"}]
    assert read(forget=begun).fingerprint() != read(forget=probe).fingerprint()
    assert len(read(forget=begun, begun=probe).probes["begun"]) == 1  # another question, and no idle probe


@pytest.mark.parametrize("other", ["retain", "holdout"])
def test_a_fact_is_not_forgotten_and_retained_whatever_its_answers_begin_with(other: str):
    row = asked(("Aldoria", "bread"))[0]
    with pytest.raises(DataRefused, match=f"1 records are in the forget set and in the {other} set"):
        read(**{"forget": [{**row, "lead": "It is mostly"}], other: [{**row, "lead": "They sell"}]})


def test_no_record_of_the_demo_is_left_out():
    folder = Path(demo.__file__).parent
    for name in ("forget", "retain", "holdout", "neighbour", "paraphrase"):
        records = text.load(folder / f"{name}.jsonl")
        assert len(weigh_once({name: text.encode_for(records, llama(), folder)})[name]) == len(records), name


def test_the_loss_of_a_set_with_a_repeated_record_is_that_of_the_set_without_it():
    once = read(forget=asked(("Aldoria", "bread"), ("Borwyn", "salt copper")))
    twice = read(forget=asked(("Aldoria", "bread"), ("Aldoria", "bread"), ("Borwyn", "salt copper")))
    kept = read(
        forget=asked(("Aldoria", "bread"), ("Aldoria", "bread"), ("Borwyn", "salt copper")), keep_duplicates=True
    )
    values = [unlearn(llama(), r, ENDED, "Loss", added_probes=False).findings[0].value for r in (once, twice, kept)]
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_stand_ins_stay_the_partners_of_their_records():
    forget = asked(("Aldoria", "bread"), ("Aldoria", "bread"), ("Borwyn", "salt"), ids="abc")
    stand_in = asked(("Aldoria", "north"), ("Aldoria", "amber"), ("Borwyn", "winter"), ids="abc")
    request = read(forget=forget, stand_in=stand_in)
    assert [e.id for e in request.forget] == [e.id for e in request.stand_in] == ["a", "c"]
    same = asked(("Aldoria", "north"), ("Aldoria", "north"), ids="xy")  # no partners: they weigh once as well
    assert [e.id for e in read(forget=forget, stand_in=same).stand_in] == ["x"]


def test_sets_without_repeats_are_left_as_they_are():
    _, request = family_of("llama")
    assert weigh_once(request.sets()) == request.sets()
    _, pictures = family_of("vit")
    once = weigh_once({"forget": pictures.forget + pictures.forget[:2]})
    assert [e.id for e in once["forget"]] == [e.id for e in pictures.forget]


def test_a_probe_that_is_a_training_set_is_refused():
    forget, retain = asked(("Aldoria", "bread")), asked(("Borwyn", "salt"), ("Casmek", "amber"))
    for probe, name in ((retain[::-1], "retain"), (forget, "forget")):
        with pytest.raises(DataRefused, match=f"the probe again holds the records of the {name} set"):
            read(forget=forget, retain=retain, again=probe)
    assert len(read(forget=forget, retain=retain, part=retain[:1]).probes["part"]) == 1
    options = [{**row, "options": ["north"]} for row in retain]  # the same questions, with what else may be chosen
    assert len(read(forget=forget, retain=retain, choices=options).probes["choices"]) == 2


def test_a_cut_text_and_a_conversation_are_counted():
    talk = {"messages": [m for pair in asked(("Aldoria", "bread"), ("Borwyn", "salt")) for m in turns(pair)]}
    texts = [{"text": "bread copper violet harbour seven winter amber"}, {"text": "north cellar"}]
    request = read(forget=[*texts, talk], reading=Reading(block_size=3))
    # Seven words in pieces of three, of which the first is the last of the piece before: 1-3, 3-5, 5-7.
    assert request.intakes == {"forget": Intake(3, apart=2, parts=5)}
    assert len(request.forget) == 6
    said = limits(request, (), (), False, None)
    assert any("2 records of the forget set became 5 examples: long texts are cut" in line for line in said)


def turns(row: dict) -> list[dict]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def test_the_report_says_what_was_left_out_and_reads_back(tmp_path: Path):
    request = read(forget=asked(("Aldoria", "bread"), ("Aldoria", "bread")))
    report = unlearn(llama(), request, ENDED, "Loss", added_probes=False)
    facts = report.request
    assert facts == describe_request(request, "tokens", {})
    assert (facts.sets["forget"].intake, facts.duplicates) == (Intake(2, 1, 1), {"forget": 0})
    assert any("1 examples of the forget set repeat an earlier one and were left out" in line for line in report.limits)
    report.save(tmp_path / "out")
    assert Report.read(tmp_path / "out").request == facts


def test_the_command_s_files_say_the_same(tmp_path: Path):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in asked(("Aldoria", "bread"), ("Aldoria", "bread"))))
    counts = [len(Inputs(path, keep_duplicates=kept).read().request(llama()).forget) for kept in (False, True)]
    assert counts == [1, 2]


def test_ids_may_begin_with_a_byte_order_mark(tmp_path: Path):
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4), "red" if name == "cat" else "blue").save(tmp_path / "set" / name / "1.png")
    ids = tmp_path / "ids.txt"
    ids.write_bytes(b"\xef\xbb\xbfcat/1.png\r\n")
    read = Inputs(tmp_path / "set", only_ids=ids).read()
    assert {name: [record.id for record in records] for name, records in read.sets.items()} == {
        "forget": ["cat/1.png"],
        "retain": ["dog/1.png"],
    }
    with pytest.raises(UsageRefused, match="are for texts"):
        Inputs(tmp_path / "set", only_ids=ids, reading=Reading("S")).read()
