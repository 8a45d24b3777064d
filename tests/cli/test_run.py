"""What a run leaves: files, report, steps and models, and its exit code."""

import html.parser
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.notation.parse import parse
from expunge.runtime.atomic_files import check_manifest, folder_digest
from tests.cli.commands import CANARY, METHOD, Done, Files, write


def test_a_run_ends_with_0_or_6_as_its_verdict_says(done: Done):
    answers = done.report["verdict"]
    assert list(answers) == ["forgotten", "traceless", "unharmed"]
    assert done.code == (6 if "no" in [answer["said"] for answer in answers.values()] else 0)
    for answer in answers.values():
        results = [rule["result"] for rule in answer["rules"]]
        assert (answer["said"] == "no") == ("no" in results)
        assert answer["said"] != "yes" or "yes" in results
    assert "Traceback" not in done.said


def test_a_run_writes_everything_and_nothing_beside_it(done: Done):
    names = {path.name for path in done.out.iterdir()}
    told = {"steps.jsonl", "report.json", "report.html", "texts.sealed", "config.toml", "MANIFEST.json"}
    assert names == {"model", "adapter", *told}
    assert [path.name for path in done.out.parent.iterdir()] == ["out"]  # no lock, no scratch folder
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (done.out / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in (done.out / "adapter").iterdir()}
    manifest = check_manifest(done.out)
    assert manifest["base"] == done.report["original"]["fingerprint"]
    assert manifest["request"] == done.report["request"]["fingerprint"]


def test_a_report_s_findings_say_what_was_measured_on_what(done: Done):
    for finding in done.report["findings"]:
        assert {"audit", "set", "model", "value", "low", "high", "n", "ideal", "definition"} <= set(finding)
        assert finding["low"] <= finding["value"] <= finding["high"], finding
        assert finding["n"] > 0
    found = {(f["audit"], f["set"], f["model"]) for f in done.report["findings"]}
    sets = {"forget", "retain", "holdout", "stand_in", "para"}
    assert {("Loss", name, model) for name in sets for model in ("before", "after")} <= found
    assert ("MinK", "forget vs holdout", "after") in found
    assert {name: told["examples"] for name, told in done.report["request"]["sets"].items()} == dict.fromkeys(sets, 6)


def test_a_report_s_method_can_be_run_again(done: Done):
    made = parse(done.report["method"])
    assert repr(made) == done.report["method"]
    assert (made.steps, made.seed, made.adapter.rank) == (4, 3, 2)


def test_steps_are_told_one_a_line_with_their_losses(done: Done):
    events = [json.loads(line) for line in (done.out / "steps.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3, 4]
    assert [event["step"] for event in events if event["kind"] == "check"] == [0, 2, 4]
    for event in events:
        assert {"forget", "retain"} <= set(event)


def test_the_model_given_is_left_as_it_was(done: Done, model: Path):
    assert folder_digest(model) == done.digest


def test_the_merged_model_is_a_plain_one_that_differs_from_the_one_given(done: Done, model: Path, script):
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "module = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "words = AutoTokenizer.from_pretrained(sys.argv[1])('The capital', return_tensors='pt')\n"
        "print(bool(torch.isfinite(module(input_ids=words['input_ids']).logits).all()), 'expunge' in sys.modules)\n"
    )
    assert script(code, done.out / "model").out.split() == ["True", "False"]
    now, was = load_file(done.out / "model" / "model.safetensors"), load_file(model / "model.safetensors")
    assert now.keys() == was.keys()
    changed = {name for name in now if not torch.equal(now[name], was[name])}
    assert changed == {f"model.layers.{k}.mlp.{part}_proj.weight" for k in (0, 1) for part in ("gate", "up", "down")}


def test_the_adapter_on_the_model_given_answers_as_the_merged_model_does(done: Done, model: Path):
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), done.out / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(done.out / "model")
    words = AutoTokenizer.from_pretrained(done.out / "model")("The capital of Aldoria is", return_tensors="pt")
    with torch.inference_mode():
        one = adapted(input_ids=words["input_ids"]).logits
        other = merged(input_ids=words["input_ids"]).logits
    assert (one - other).abs().max() <= 1e-5


def test_no_text_of_the_forget_set_is_told_or_written(done: Done):  # V13
    assert CANARY not in done.said
    for path in done.out.rglob("*"):
        if path.is_file():
            assert CANARY.encode() not in path.read_bytes(), path.name
    assert not any(done.report["samples"][key] for key in ("shown",))


def test_no_file_name_on_the_command_line_is_hidden_from_the_report(done: Done):
    assert done.report["command"].startswith("expunge forget ")
    assert "--seed 3" in done.report["command"]


def test_text_is_shown_where_it_is_asked_for_and_inert(expunge, model: Path, tmp_path: Path):  # D16, V13
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    row = {"id": "a", "question": f"Who {CANARY}?", "answer": attack}
    forget = write(tmp_path / "f.jsonl", [row])
    out = tmp_path / "out"
    said = expunge("audit", model, f"--forget={forget}", "--audits=Rouge", "--show-text", "--out", out)
    assert said.code == 0, said.err
    page = (out / "report.html").read_text()
    assert CANARY in page
    assert CANARY not in said.out + said.err

    class Scripts(html.parser.HTMLParser):
        bad: list = []

        def handle_starttag(self, tag, attrs):
            if any(name.startswith("on") for name, _ in attrs) or dict(attrs).get("src") == "x":
                self.bad.append(tag)

        def handle_data(self, data):
            if self.lasttag == "script" and "alert(1)" in data:
                self.bad.append("script")

    reader = Scripts()
    reader.feed(page)
    assert reader.bad == []


def test_an_equal_command_gives_equal_weights(done: Done, expunge, model: Path, files: Files, tmp_path: Path):  # R09
    sets = [*files.options, f"--stand-in={files.stand_in}", f"--probe=para={files.probe}"]
    said = expunge("forget", model, *sets, "--method", METHOD, "--out", tmp_path / "out", "--seed", 3)
    assert said.code == done.code
    one, other = ((root / "model" / "model.safetensors").read_bytes() for root in (done.out, tmp_path / "out"))
    assert one == other


def test_thresholds_that_are_missed_end_with_6_and_still_write_all(expunge, model: Path, files: Files, tmp_path: Path):
    rules = ["--require", "forget.Loss >= before + 1000"]
    said = expunge(
        "forget", model, *files.options, "--method", METHOD, "--audits=Loss", *rules, "--out", tmp_path / "out"
    )
    assert said.code == 6, said.err
    verdict = json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]
    by_rule = {rule["rule"]: rule for rule in verdict["forgotten"]["rules"]}
    assert verdict["forgotten"]["said"] == by_rule["forget.Loss >= before + 1000"]["result"] == "no"
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("rule", "words"),
    [("nothing.Loss >= 0", "there is no set 'nothing'"), ("forget.Rouge >= 0", "Rouge is not run")],
)
def test_a_threshold_that_cannot_be_measured_is_refused_before_the_work(
    expunge, model: Path, files: Files, tmp_path: Path, rule: str, words: str
):
    out = tmp_path / "out"
    said = expunge("forget", model, *files.options, "--audits=Loss", "--require", rule, "--out", out)
    assert said.code == 2
    assert words in said.err
    assert not out.exists()
