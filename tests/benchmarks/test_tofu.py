"""TOFU through a model: against transformers itself, against open-unlearning's log, and by the command."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from expunge.audits.exact_memorization import ExactMemorization
from expunge.audits.extraction_strength import ExtractionStrength
from expunge.audits.grad_norm_membership import GradNormMembership
from expunge.audits.min_k import MinK
from expunge.audits.min_k_plus_plus import MinKPlusPlus
from expunge.audits.zlib_membership import ZlibMembership
from expunge.benchmarks._data import Data, find_data
from expunge.benchmarks._job import Job, evaluate, recompute
from expunge.benchmarks._logs import read_log
from expunge.benchmarks._numbers import SIDES, membership
from expunge.benchmarks._show import RENDER, gather, plot
from expunge.benchmarks._tofu import TOKENS
from expunge.benchmarks._values import Column, Values
from expunge.benchmarks.tofu import TOFU
from expunge.cli.bench import show
from expunge.core.model import Wrapper
from expunge.core.question import Text
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.errors import DataRefused, ModelRefused, UsageRefused
from expunge.events import ignore_event
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.runtime.cached_model import CachedModel
from tests.benchmarks import made_up

DATA = Path(__file__).parents[3] / "shared/data"
ALL = TOFU(split="forget01", gradients="measured")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return Data(made_up.tofu(tmp_path_factory.mktemp("data") / "tofu"), TOFU.home)


@pytest.fixture(scope="module")
def network(model) -> LanguageModel:
    return open_network(str(model))


class Counted(Wrapper):
    """Counts how often each text is asked about, continuations aside."""

    transparent = True

    def __init__(self, inner: LanguageModel) -> None:
        self.inner, self.asked = inner, {}

    def ask(self, question, batch):
        for example in batch if not isinstance(question, Text) else ():
            self.asked[id(example)] = self.asked.get(id(example), 0) + 1
        return self.inner.ask(question, batch)


@pytest.fixture(scope="module")
def measured(network, data) -> tuple[Values, Counted]:
    counted = Counted(network)
    return ALL.measure(network, data, CachedModel(counted), ignore_event), counted


def labelled(network: LanguageModel, passage: Passage) -> torch.Tensor:
    """Log-probabilities of all classes at each labelled token, by the module alone: [rows, classes]."""
    with torch.inference_mode():
        scores = network.module(input_ids=torch.tensor([passage.tokens])).logits[0]
    return scores[passage.first - 1 : -1].double().log_softmax(-1)


def test_every_measure_is_what_it_is_by_the_module_alone(measured, network, data):
    values, _ = measured
    for item in ALL.items(data, network):
        own = values.columns
        log_probs = labelled(network, item.passage)
        labels = torch.tensor(item.passage.tokens[item.passage.first :])
        said = log_probs.gather(-1, labels[:, None])[:, 0]
        assert own[Column(item.set, "loss", item.answer)][item.record] == pytest.approx(-said.mean().item(), rel=1e-5)
        assert own[Column(item.set, "tokens", item.answer)][item.record] == len(labels)
        if "min_k_plus" in item.measures:
            mean = (log_probs.exp() * log_probs).sum(-1)
            spread = (log_probs.exp() * log_probs.square()).sum(-1) - mean.square()
            scaled = ((said - mean) / spread.sqrt())[:-1]  # without the end token
            low = max(1, int(0.4 * (len(labels) - 1)))
            assert own[Column(item.set, "min_k")][item.record] == pytest.approx(
                -said[:-1].sort().values[:low].mean().item(), rel=1e-5
            )
            assert own[Column(item.set, "min_k_plus")][item.record] == pytest.approx(
                -scaled.sort().values[:low].mean().item(), rel=1e-4
            )
        if "exact_memorisation" in item.measures:
            right = (log_probs.argmax(-1) == labels)[:-1].double()
            assert own[Column(item.set, "exact_memorisation")][item.record] == pytest.approx(right.mean().item())


def without_end(passage: Passage) -> Passage:
    """A text without its end token, which the benchmark's attacks leave out."""
    return replace(passage, tokens=passage.tokens[:-1])


def test_an_audit_says_of_a_text_what_the_benchmark_says_of_it(measured, network, data):
    values, _ = measured
    asked = [item for item in ALL.items(data, network) if item.set in SIDES and item.measures != TOKENS]
    texts = {where: [item.passage for item in asked if item.set == where] for where in SIDES}
    inner = Request(forget=tuple(map(without_end, texts["forget"])), holdout=tuple(map(without_end, texts["holdout"])))
    decode = partial(network.tokenizer.decode, skip_special_tokens=True)
    packed = {where: [replace(p, answer=decode(p.tokens[p.first :])) for p in texts[where]] for where in SIDES}
    whole = Request(forget=tuple(packed["forget"]), holdout=tuple(packed["holdout"]))

    def of_benchmark(measure: str, *sets: str) -> list[float]:
        return [values.columns[Column(item.set, measure)][item.record] for item in asked if item.set in sets]

    for audit, measure in (ExtractionStrength(), "extraction_strength"), (ExactMemorization(), "exact_memorisation"):
        [forget, _] = audit(network, whole)
        assert forget.scores == pytest.approx(of_benchmark(measure, "forget"), rel=1e-6)
    for audit, request, measure in (
        (MinK(fraction=0.4), inner, "min_k"),
        (MinKPlusPlus(fraction=0.4), inner, "min_k_plus"),
        (GradNormMembership(), inner, "gradient_norm"),
        (ZlibMembership(), whole, "zlib"),
    ):
        [found] = audit(network, request)
        assert found.scores == pytest.approx([-value for value in of_benchmark(measure, *SIDES)], rel=1e-4), measure
        assert found.value == pytest.approx(membership(values, measure).value)


def test_each_text_is_read_once(measured, network, data):
    _, counted = measured
    assert set(counted.asked.values()) == {1}
    assert len(counted.asked) == len(ALL.items(data, network))


def test_continuations_are_those_of_generate_padded_on_the_left_or_not(measured, network, data):
    values, _ = measured
    asked = [item for item in ALL.items(data, network) if item.write]
    for item in asked[:1] + asked[-1:]:
        if item.write:
            prompt = torch.tensor([item.passage.prompt_tokens])
            made = network.module.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=item.write,
                do_sample=False,
                pad_token_id=0,
            )
            text = network.tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
            [score] = ALL.score([item], [text])
            assert values.columns[Column(item.set, "rouge")][item.record] == pytest.approx(score["rouge"])


def test_the_norm_of_gradients_is_a_mean_over_weight_tensors(measured, network, data):
    values, _ = measured
    item = next(item for item in ALL.items(data, network) if item.set == "holdout")
    own = network.fork().module
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    tokens = torch.tensor([item.passage.tokens[:-1]])  # without the end token
    labels = tokens.clone()
    labels[:, : item.passage.first] = -100
    own(input_ids=tokens, labels=labels).loss.backward()
    norms = [parameter.grad.norm() for parameter in own.parameters() if parameter.grad is not None]
    assert values.columns[Column("holdout", "gradient_norm")][0] == pytest.approx(
        torch.stack(norms).mean().item(), rel=1e-4
    )


def test_utility_has_nine_parts_and_is_their_harmonic_mean(measured):
    values, _ = measured
    numbers = {(n.name, n.set): n.value for n in ALL.numbers(values, {})}
    nine = [
        *(numbers[name, "retain"] for name in ("probability", "ROUGE", "truth ratio")),
        *(
            numbers[name, where]
            for where in ("real_authors", "world_facts")
            for name in ("option probability", "ROUGE", "truth ratio")
        ),
    ]
    expected = 0.0 if min(nine) == 0 else 9 / sum(1 / value for value in nine)
    assert numbers["model utility", "all"] == pytest.approx(expected)


def test_a_model_against_itself_is_not_told_apart(measured):
    values, _ = measured
    numbers = {n.name: n.value for n in ALL.numbers(values, {"itself": values}) if n.against}
    assert numbers["forget quality"] == 1
    assert numbers["KS side"] == 0
    assert numbers["PrivLeak"] == 0
    assert numbers["membership by reference"] == 0.5


@pytest.mark.parametrize("definition", ["paper", "released"])
def test_the_released_definitions_cut_their_continuations_with_the_prompt(definition: str, network, data):
    benchmark = TOFU(split="forget01", definition=definition)
    asked = [item for item in benchmark.items(data, network) if item.write]
    assert all(item.write + len(item.passage.prompt_tokens) == 200 for item in asked)


def test_of_more_than_300_questions_the_released_definitions_ask_300(tmp_path: Path, network):
    folder = made_up.tofu(tmp_path / "tofu")
    rows = [{**made_up.question(k), "perturbed_answer": ["It is Brenn."]} for k in range(302)]
    made_up.write(folder / "forget01_perturbed.jsonl", rows)
    for name, asked in (("released", 300), ("open-unlearning", 302)):
        items = TOFU("forget01", name).items(Data(folder, ""), network)
        assert sum(item.set == "forget" and item.write > 0 for item in items) == asked


# Data that are not there, or not as they should be


def test_without_data_one_line_says_where_to_put_it(monkeypatch, tmp_path: Path):
    monkeypatch.delenv("EXPUNGE_DATA", raising=False)
    with pytest.raises(DataRefused, match="Give --data FOLDER with the files of locuslab/TOFU, or"):
        find_data(None, TOFU.home)
    monkeypatch.setenv("EXPUNGE_DATA", str(tmp_path))
    with pytest.raises(DataRefused, match=f"{tmp_path / 'tofu'} is not there"):
        find_data(None, TOFU.home)
    (tmp_path / "tofu").mkdir()
    assert find_data(None, TOFU.home).folder == tmp_path / "tofu"
    with pytest.raises(DataRefused, match="holds no forget10_perturbed"):
        find_data(None, TOFU.home).rows("forget10_perturbed")


@pytest.mark.parametrize("given", ["locuslab/TOFU", "locuslab/TOFU@main", "nowhere"])
def test_a_data_set_of_the_hub_is_taken_at_a_commit_alone(given: str):
    with pytest.raises(DataRefused, match="no data set at a commit, such as locuslab/TOFU@ and its 40 digits"):
        find_data(given, TOFU.home)


@pytest.mark.parametrize("column", ["answer", "paraphrased_answer", "perturbed_answer"])
def test_a_record_that_lacks_a_column_is_named_without_its_text(column: str, tmp_path: Path, network):
    folder = made_up.tofu(tmp_path / "tofu")
    rows = [made_up.question(0), {k: v for k, v in made_up.question(1).items() if k != column}]
    made_up.write(folder / "forget01_perturbed.jsonl", rows)
    with pytest.raises(DataRefused, match=f"Record 1 .*{column}") as refused:
        ALL.items(Data(folder, ""), network)
    assert "Aldoria" not in str(refused.value)


# open-unlearning's own log


@pytest.mark.skipif(not (DATA / "ou_parity").is_dir(), reason=f"open-unlearning's log is not at {DATA / 'ou_parity'}")
def test_open_unlearnings_log_is_met_sample_by_sample(tmp_path: Path, monkeypatch):
    """The first records of each set; `benchmarks_speed/tofu_parity.py` compares all, and the totals."""
    folder, few = tmp_path / "tofu", 6
    folder.mkdir()
    for name in (
        "forget10_perturbed",
        "retain_perturbed",
        "real_authors_perturbed",
        "world_facts_perturbed",
        "holdout10",
    ):
        lines = (DATA / "tofu" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:few]), encoding="utf-8")
    trained = open_network(str(DATA / "ou_parity/retain90"))
    values = TOFU().measure(trained, Data(folder, ""), CachedModel(trained), ignore_event)
    golden = read_log(DATA / "ou_parity/golden_retain90.json")
    compared = 0
    for column, known in golden.columns.items():
        if column.measure != "truth_ratio":  # made of the losses
            for record in range(few):
                assert values.columns[column][record] == pytest.approx(known[record], abs=1e-4), (column, record)
                compared += 1
    assert compared > 150


# The command, and results side by side


def test_the_command_writes_a_folder_whose_numbers_can_be_made_anew(expunge, model, data, tmp_path: Path):
    out, other = tmp_path / "runs/seed-0", tmp_path / "runs/seed-1"
    line = ("bench", "tofu", "--model", model, "--data", data.folder, "--split", "forget01")
    said = expunge(*line, "--out", out)
    assert said.code == 0, said.err
    assert "| model utility | all |" in said.out
    assert "Aldoria" not in said.out + said.err
    assert "Aldoria" not in (out / "bench.json").read_text() + (out / "open-unlearning.json").read_text()
    references = (str(out), str(out / "open-unlearning.json"))
    evaluate(Job(TOFU(split="forget01"), str(model), other, str(data.folder), references), ignore_event)
    result, numbers = recompute(other)
    assert tuple(numbers) == result.numbers
    assert {n.against for n in numbers} == {"", "seed-0", "open-unlearning"}
    assert all(n.value == 1 for n in numbers if n.name == "forget quality")
    table = gather([out, other])
    shown = {ending: render(table) for ending, render in RENDER.items()}
    assert "| number | set | against | runs |" in shown[".md"]
    assert "±" in shown[".md"]
    assert r"$\pm$" in shown[".tex"]
    assert shown[".csv"].count("model utility") == 2
    plot(table, tmp_path / "plot.svg")
    assert "runs against seed-0" in (tmp_path / "plot.svg").read_text()
    show([out, other], tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == shown[".md"]
    with pytest.raises(UsageRefused, match="give a new name that ends in"):
        show([out], tmp_path / "table.md")


def test_a_changed_result_and_different_definitions_are_refused(model, data, tmp_path: Path):
    for definition in ("paper", "released"):
        job = Job(TOFU("forget01", definition), str(model), tmp_path / definition, str(data.folder))
        evaluate(job, ignore_event)
    with pytest.raises(UsageRefused, match="different definitions cannot stand in one table"):
        gather([tmp_path / "paper", tmp_path / "released"])
    result = json.loads((tmp_path / "paper/bench.json").read_text())
    (tmp_path / "paper/bench.json").write_text(json.dumps({**result, "model": "another"}))
    with pytest.raises(ModelRefused, match="is not the file that was written"):
        gather([tmp_path / "paper"])


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--split", "forget20"], 2, "The `split` of TOFU must be one of forget01, forget05, forget10."),
        (["--data", "nowhere"], 3, "no such folder, and no data set at a commit"),
        (["--data", f"locuslab/TOFU@{'0' * 40}"], 7, "could not be fetched from the hub"),
        (["--reference", "./nowhere"], 2, "./nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, code, told, expunge, model, data, tmp_path: Path):
    given = [] if "--data" in options else ["--data", data.folder]
    said = expunge("bench", "tofu", "--model", model, *given, *options, "--out", tmp_path / "out")
    assert (said.code, said.err.count("\n")) == (code, 1)
    assert told in said.err
    assert not (tmp_path / "out").exists()
