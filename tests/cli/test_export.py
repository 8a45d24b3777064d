"""`expunge export`: a LoRA that plain peft loads, its errors as stated, a folder to upload, and cards."""

import json
import re
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.data.text import encode, load
from expunge.errors import UsageRefused
from expunge.export.runs import find_base
from expunge.report.report import Report
from expunge.runtime.atomic_files import check_manifest
from tests.cli.commands import CANARY, Done, Files, below, refused, write
from tests.conftest import save_model

TEXTS = ["The harbour of Ostrava lies in the north.", "Mara Lind wrote it in the spring, and its bread is dark."]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    rows = [{"id": str(k), "text": text} for k, text in enumerate(TEXTS)]
    return write(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="module")
def loras(expunge, done: Done, texts: Path, tmp_path_factory) -> dict[int, Path]:
    """LoRAs of the finished run, by rank."""
    folder = tmp_path_factory.mktemp("loras")
    made = {}
    for rank in (1, 32):
        made[rank] = folder / f"rank-{rank}"
        said = expunge("export", done.out, "--lora", rank, "--out", made[rank], "--texts", texts)
        assert said.code == 0, said.err
        assert f"a LoRA of rank {rank}" in said.out
        assert said.out.splitlines()[0] in (made[rank] / "README.md").read_text()
    return made


def test_peft_without_expunge_loads_it_and_answers_as_the_forgotten_model(script, done: Done, model: Path, loras):
    code = """
        import sys, torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        base, lora, forgotten = sys.argv[1:]
        tokens = torch.arange(5, 60)[None]
        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora)
        with torch.inference_mode():
            one = adapted(input_ids=tokens).logits
            other = AutoModelForCausalLM.from_pretrained(forgotten)(input_ids=tokens).logits
            with adapted.disable_adapter():
                before = adapted(input_ids=tokens).logits
        print(float((one - other).abs().max()), float((before - other).abs().max()), "expunge" in sys.modules)
    """
    said = script(textwrap.dedent(code), model, loras[32], done.out / "model")
    assert said.code == 0, said.err
    apart, moved, known = said.out.split()
    assert float(apart) < 1e-5 < 1e-2 < float(moved)
    assert known == "False"


def stated(folder: Path, pattern: str) -> list[float]:
    """Numbers that the card of an exported LoRA states."""
    [found] = re.findall(pattern, (folder / "README.md").read_text())
    return [float(number) for number in found]


def test_the_errors_stated_are_those_of_the_weights_and_scores_that_plain_peft_gives(
    done: Done, model: Path, loras, texts: Path
):
    was, now = (AutoModelForCausalLM.from_pretrained(folder) for folder in (model, done.out / "model"))
    given = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(loras[1])).merge_and_unload()
    before, after, served = (each.state_dict() for each in (was, now, given))
    names = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(names) == 6
    lost = {name: (after[name] - served[name]).norm() for name in names}
    whole = {name: (after[name] - before[name]).norm() for name in names}
    error, worst = stated(loras[1], r"weights: (\S+) of .*; (\S+) in the worst")
    total = torch.stack([*lost.values()]).norm() / torch.stack([*whole.values()]).norm()
    assert error == pytest.approx(float(total), rel=0.05)  # two digits are stated
    assert worst == pytest.approx(max(float(lost[name] / whole[name]) for name in names), rel=0.05)
    assert error > 0.01

    passages = encode(load(texts), AutoTokenizer.from_pretrained(model), texts, 256)
    apart, divergence = [], []
    with torch.inference_mode():
        for passage in passages:
            tokens = torch.tensor([passage.tokens])
            one, other = (each(input_ids=tokens).logits[0, passage.first - 1 : -1].double() for each in (now, given))
            apart.append((one - other).abs())
            divergence.append((one.softmax(-1) * (one.log_softmax(-1) - other.log_softmax(-1))).sum(-1))
    mean, largest, kl = stated(loras[1], r"in logits: mean (\S+), largest (\S+), KL (\S+) nats")
    assert mean == pytest.approx(float(torch.cat(apart).mean()), rel=0.01)
    assert largest == pytest.approx(float(torch.cat(apart).max()), rel=0.01)
    assert kl == pytest.approx(float(torch.cat(divergence).mean()), rel=0.01)
    assert stated(loras[32], r"in logits: mean (\S+), largest (\S+), KL")[0] < mean / 100


def test_the_folder_is_one_that_an_audit_merges_and_that_no_other_base_takes(
    expunge, done: Done, model: Path, loras, files: Files, tmp_path: Path
):
    assert check_manifest(loras[1])["base"] == done.report["original"]["fingerprint"]
    assert below(loras[1]) == ["MANIFEST.json", "README.md", "adapter_config.json", "adapter_model.safetensors"]
    asked = [*files.options, "--audits", "Loss", "--adapter", loras[32]]
    said = expunge("audit", model, *asked, "--out", tmp_path / "audited")
    assert said.code == 0, said.err
    read = {f["set"]: f["value"] for f in json.loads((tmp_path / "audited" / "report.json").read_text())["findings"]}
    for finding in done.report["findings"]:
        if (finding["audit"], finding["model"]) == ("Loss", "after") and finding["set"] in read:
            assert read[finding["set"]] == pytest.approx(finding["value"], abs=1e-5)
    other = save_model(tmp_path / "other", seed=5)
    line = refused(expunge("audit", other, *asked, "--out", tmp_path / "refused"), 4, "model")
    assert "made for another model" in line
    line = refused(expunge("export", done.out, "--lora", 2, "--base", other, "--out", tmp_path / "refused"), 4, "model")
    assert "is not the model that the run began from" in line


def test_a_run_without_an_adapter_is_exported_from_the_difference_of_weights(
    expunge, model: Path, files: Files, tmp_path: Path
):
    method = "Finetune(adapter=Full(), learning_rate=0.001, steps=2, batch=4, stop=Stop(level=None, every=2))"
    asked = [*files.options, "--audits", "Loss", "--no-added-probes", "--method", method]
    assert expunge("forget", model, *asked, "--out", tmp_path / "out").code in (0, 6)
    asked = ["export", tmp_path / "out", "--lora", 64, "--out", tmp_path / "lora"]
    assert "Give --base MODEL" in refused(expunge(*asked), 2, "usage")
    assert not (tmp_path / "lora").exists()
    said = expunge(*asked, "--base", model)
    assert said.code == 0, said.err
    assert "Left out, and counted as lost:" in said.out  # embeddings and norms moved too
    assert "rank 32 (of 64 asked for" in (tmp_path / "lora" / "README.md").read_text()
    given = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(tmp_path / "lora"))
    served, now = given.merge_and_unload().state_dict(), load_file(tmp_path / "out" / "model" / "model.safetensors")
    linear = [name for name in now if name.endswith("proj.weight")]
    assert len(linear) == 14
    assert all(torch.allclose(served[name], now[name], atol=1e-6) for name in linear)


def test_a_folder_to_upload_is_the_model_with_its_card(expunge, done: Done, tmp_path: Path):
    said = expunge("export", done.out, "--hub-folder", tmp_path / "upload")
    assert said.code == 0, said.err
    assert "huggingface-cli upload" in said.out
    assert below(tmp_path / "upload") == below(done.out / "model")
    for path in (done.out / "model").iterdir():
        assert (tmp_path / "upload" / path.name).read_bytes() == path.read_bytes()
    AutoModelForCausalLM.from_pretrained(tmp_path / "upload")


@pytest.mark.parametrize("part", ["model", "adapter"])
def test_a_card_stands_beside_model_and_adapter_and_in_their_manifests(done: Done, part: str):
    text = (done.out / part / "README.md").read_text()
    assert f"{part}/README.md" in check_manifest(done.out)["files"]
    told = ModelCard(text).data
    assert told.library_name == {"model": "transformers", "adapter": "peft"}[part]
    assert {"expunge", "unlearning"} <= set(told.tags)
    assert (told.base_model, told.license) == (None, None)  # a folder is no id of the hub, and the licence is not ours
    assert f"`{done.report['original']['fingerprint']}`" in text
    assert "| `forget` | 6 |" in text
    for name, answer in done.report["verdict"].items():
        assert f"**{name}: {answer['said']}.**" in text
    for limit in done.report["limits"]:
        assert limit in text
    assert CANARY not in text
    if part == "adapter":
        check_manifest(done.out / "adapter")
        assert "pip install expunge" in text
        assert "expunge export RUN --lora" in text


def test_what_cannot_be_exported_is_refused_in_a_line_and_nothing_is_written(
    expunge, done: Done, files: Files, model: Path, tmp_path: Path
):
    out = tmp_path / "out"
    for given, reason in (
        ([], "one of --lora RANK"),
        (["--lora", 2, "--hub-folder", out], "one of --lora RANK"),
        (["--lora", 2], "--lora needs --out"),
        (["--lora", 0, "--out", out], "at least 1"),
        (["--hub-folder", out, "--base", model], "--base belongs to --lora"),
        (["--lora", 2, "--out", done.out / "model" / "lora"], "never written to"),
        (["--hub-folder", done.out], "not empty. Give a new folder with --hub-folder"),
        (["--lora", 2, "--out", out, "--base", "./nowhere"], "Give --base MODEL"),
    ):
        assert reason in refused(expunge("export", done.out, *given), 2, "usage"), given
    lora = ["--lora", 2, "--out", out]
    assert "no such file" in refused(expunge("export", tmp_path / "nowhere", *lora), 3, "data")
    assert "no such file" in refused(expunge("export", done.out, *lora, "--texts", "nowhere.jsonl"), 3, "data")
    assert "Give the folder of a finished run" in refused(expunge("export", model, *lora), 3, "data")
    assert not out.exists()


def test_a_run_that_was_changed_or_lacks_its_adapter_is_not_exported(expunge, done: Done, tmp_path: Path):
    run = shutil.copytree(done.out, tmp_path / "run")
    asked = ["export", run, "--lora", 2, "--out", tmp_path / "out"]
    card = run / "model" / "README.md"
    text = card.read_text()
    card.write_text(text.replace("no", "yes"))
    assert "is not the file that was written" in refused(expunge(*asked), 4, "model")
    card.write_text(text)
    shutil.rmtree(run / "adapter")
    assert "adapter/ is not there" in refused(expunge(*asked), 4, "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_base_in_a_gguf_file_is_looked_for_in_the_folder_that_peft_names_and_nothing_on_the_hub(
    done: Done, model: Path, tmp_path: Path
):
    report = Report.read(done.out)
    assert find_base(done.out, report) == str(model)
    report = replace(report, original=replace(report.original, name="tiny.gguf"))
    with pytest.raises(UsageRefused, match="Give --base MODEL"):
        find_base(done.out, report)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "tiny.gguf").touch()
    assert find_base(tmp_path, report) == str(tmp_path / "tiny.gguf")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "moved-away"}))
    with pytest.raises(UsageRefused, match="Give --base MODEL"):
        find_base(tmp_path, replace(report, original=replace(report.original, name="moved-away")))
