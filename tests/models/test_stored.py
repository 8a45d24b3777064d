"""A model comes back as it came: in its precision, its shards and with all of its weights; or it is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from expunge.core.request import Request
from expunge.errors import ModelRefused
from expunge.models.language import LanguageModel
from expunge.models.open import open_model
from expunge.models.source import Source
from expunge.models.stored import Stored, stored_of, types_in, weight_files
from expunge.run.compare import compare
from expunge.run.utility import count_differences
from tests.families import WORDS, llama, text_request, vit

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPE = pytest.mark.parametrize("dtype", DTYPES)


def folder_of(path: Path, dtype: str = "float32", **options: object) -> Path:
    """A tiny Llama in a transformers folder."""
    llama().module.to(DTYPES[dtype]).save_pretrained(path, **options)
    WORDS.save_pretrained(path)
    return path


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


def change(folder: Path, **settings: object) -> Path:
    (folder / "config.json").write_text(json.dumps({**config(folder), **settings}))
    return folder


@DTYPE
def test_a_model_that_is_opened_and_saved_is_the_same_to_the_bit(dtype: str, tmp_path: Path):
    source = folder_of(tmp_path / "in", dtype)
    network = open_model(source)
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}  # on a CPU it computes in that
    network.save(tmp_path / "out")
    assert config(tmp_path / "out")["dtype"] == config(source)["dtype"] == dtype
    before, after = weights(source), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(before[name].dtype == after[name].dtype for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_written_is_the_float32_result_rounded_once(tmp_path: Path):
    network = open_model(folder_of(tmp_path / "in", "bfloat16"))
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)
    network.save(tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert written.dtype == torch.bfloat16
    for name, tensor in network.module.state_dict().items():
        assert torch.equal(written.state_dict()[name], tensor.to(torch.bfloat16)), name


def test_tensors_in_another_precision_keep_it(tmp_path: Path):
    source = folder_of(tmp_path / "in", "bfloat16")
    mixed = {name: t.float() if "norm" in name else t for name, t in weights(source).items()}
    save_file(mixed, source / "model.safetensors", {"format": "pt"})
    open_model(source).save(tmp_path / "out")
    assert {name: t.dtype for name, t in weights(tmp_path / "out").items()} == {n: t.dtype for n, t in mixed.items()}
    assert config(tmp_path / "out")["dtype"] == "bfloat16"
    assert types_in(tmp_path / "out") == {"float32", "bfloat16"}


@DTYPE
def test_another_precision_may_be_asked_for(dtype: str, tmp_path: Path):
    network = open_model(folder_of(tmp_path / "in", "bfloat16"), dtype=dtype)
    network.save(tmp_path / "out")
    assert types_in(tmp_path / "out") == {dtype}
    assert config(tmp_path / "out")["dtype"] == dtype


def test_numbers_that_a_precision_does_not_hold_are_refused(tmp_path: Path):
    network = open_model(folder_of(tmp_path / "in", "bfloat16"), dtype="float16")
    with torch.no_grad():
        network.module.model.norm.weight[0] = 1e5
    with pytest.raises(
        ModelRefused, match=r"model.norm.weight holds numbers too large for float16. Give another --dtype"
    ):
        network.save(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_many_shards_come_back_and_none_is_larger(dtype: str, tmp_path: Path):
    source = folder_of(tmp_path / "in", dtype, max_shard_size="20KB")
    open_model(source).save(tmp_path / "out")
    sizes = [[path.stat().st_size for path in weight_files(folder)] for folder in (source, tmp_path / "out")]
    assert len(sizes[0]) == len(sizes[1]) > 2
    assert max(sizes[1]) <= max(sizes[0]) + 1000  # headers differ
    assert open_model(tmp_path / "out").fingerprint() == open_model(source).fingerprint()


def test_tied_weights_are_written_once(tmp_path: Path):
    torch.manual_seed(0)
    tied = llama().module.config
    tied.tie_word_embeddings = True
    LlamaForCausalLM(tied).to(torch.bfloat16).save_pretrained(tmp_path / "in")
    WORDS.save_pretrained(tmp_path / "in")
    assert "lm_head.weight" not in weights(tmp_path / "in")
    open_model(tmp_path / "in").save(tmp_path / "out")
    assert weights(tmp_path / "out").keys() == weights(tmp_path / "in").keys()


def test_a_network_from_memory_is_written_as_it_is(tmp_path: Path):
    for made in (llama(), vit()):
        folder = tmp_path / type(made).__name__
        replace(made, module=made.module.to(torch.bfloat16), **_words(made)).save(folder)
        assert types_in(folder) == {"bfloat16"}
        assert config(folder)["dtype"] == "bfloat16"


def _words(made: object) -> dict:
    """What a classifier without a processor saves in its place."""
    return {} if isinstance(made, LanguageModel) else {"processor": WORDS}


def test_how_much_rounding_changed_is_measured_on_what_was_read_back(tmp_path: Path):
    request: Request = text_request()
    network = open_model(folder_of(tmp_path / "in", "bfloat16"))
    changed = network.fork()
    changed = replace(network, module=_moved(changed.module))
    said = compare(network, changed, changed, request)
    assert said.saved.max_logit_difference == 0.0
    changed.save(tmp_path / "out")
    read = said.read_back(open_model(tmp_path / "out"), "bfloat16 safetensors")
    assert 0 < read.max_logit_rounding == read.max_logit_difference < 0.1 < said.saved.max_logit_change
    replace(changed, stored=Stored(torch.float32)).save(tmp_path / "whole")
    assert said.read_back(open_model(tmp_path / "whole"), "").max_logit_rounding == 0.0


def _moved(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.data = parameter + 0.03 * torch.randn_like(parameter)
    return module


def test_to_be_written_in_another_precision_is_no_change(tmp_path: Path):
    """A method that did nothing must not pass because its result was rounded."""
    network = open_model(folder_of(tmp_path / "in"), dtype="bfloat16")
    network.save(tmp_path / "out")
    written = open_model(tmp_path / "out")
    assert not torch.equal(written.module.lm_head.weight, network.module.lm_head.weight)
    assert count_differences(network, written) == 0
    with torch.no_grad():
        written.module.lm_head.weight[0, :3] += 1
    assert count_differences(network, written) == 3


# Weights that the configuration does not name


def test_a_file_of_more_layers_than_its_configuration_is_refused(tmp_path: Path):
    source = change(folder_of(tmp_path / "in"), num_hidden_layers=1)
    with pytest.raises(ModelRefused, match=r"9 tensors of the file have no place in the model .*model.layers.1.input"):
        open_model(source)


def test_buffers_that_older_versions_wrote_are_no_weights(tmp_path: Path):
    source = folder_of(tmp_path / "in")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file({**weights(source), **old}, source / "model.safetensors", {"format": "pt"})
    assert open_model(source).fingerprint() == replace(llama()).fingerprint()


@pytest.mark.parametrize("number", [0, -1, 10**12, 1.5, "2", True])
def test_a_number_of_layers_that_no_model_has_is_refused_at_once(number: object, tmp_path: Path):
    source = change(folder_of(tmp_path / "in"), num_hidden_layers=number)
    with pytest.raises(ModelRefused, match=r"config.json says num_hidden_layers .*; allowed: 1 to 10000"):
        open_model(source)


def test_quantized_weights_are_refused_with_what_to_do(tmp_path: Path):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for given in ({"quantization_config": settings}, {"text_config": {"quantization_config": settings}}):
        source = change(folder_of(tmp_path / str(len(str(given)))), **given)
        with pytest.raises(ModelRefused, match=r"weights are quantized \(bitsandbytes\).*dequantize\(\)"):
            open_model(source)


def test_a_stale_index_beside_a_whole_file_is_passed_over_as_transformers_does(tmp_path: Path):
    source = folder_of(tmp_path / "in", "bfloat16")
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    network = open_model(source)
    assert stored_of(Source(str(source)), network.module.config) == Stored(torch.bfloat16)
    network.save(tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()


def test_an_adapter_is_told_from_a_model(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(
        ModelRefused, match=r"holds an adapter, not a model. Give the model that it was made for, and --adapter /"
    ):
        open_model(tmp_path)


def test_a_folder_without_a_tokenizer_says_which_files_to_copy(tmp_path: Path):
    source = folder_of(tmp_path / "in")
    for path in [*source.glob("tokenizer*"), *source.glob("*.jinja")]:
        path.unlink()
    with pytest.raises(ModelRefused, match=r"its tokenizer is not in the folder .*Copy tokenizer.json and"):
        open_model(source)


# The language model of one that reads images too

TEXT = dict(
    vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
EYES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
)


def seeing(name: str) -> torch.nn.Module:
    """A tiny model that reads images and texts."""
    import transformers as t

    if name == "gemma3":
        made = t.Gemma3Config(text_config={**TEXT, "sliding_window": 64}, vision_config=EYES, mm_tokens_per_image=4)
        return t.Gemma3ForConditionalGeneration(made)
    if name == "gemma4":
        small = dict(sliding_window=64, vocab_size_per_layer_input=len(WORDS), hidden_size_per_layer_input=8)
        return t.Gemma4ForConditionalGeneration(t.Gemma4Config(text_config={**TEXT, **small}))
    if name == "llava":
        made = t.LlavaConfig(text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**EYES))
        return t.LlavaForConditionalGeneration(made)
    layers = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8)
    text = {**TEXT, **layers, "layer_types": ["linear_attention", "full_attention"]}
    eyes = dict(depth=1, hidden_size=32, intermediate_size=48, num_heads=4, out_hidden_size=32, patch_size=8)
    return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=text, vision_config=eyes))


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "llava", "qwen3_5"])
def test_the_language_model_inside_of_one_that_sees_is_read_and_written(name: str, tmp_path: Path):
    from expunge.core.question import Scores
    from expunge.models.source import say_left_out

    torch.manual_seed(0)
    whole = seeing(name).eval()
    whole.save_pretrained(tmp_path / "in")
    WORDS.save_pretrained(tmp_path / "in")
    network = open_model(tmp_path / "in")
    assert type(network.module).__name__.endswith("ForCausalLM")
    [example, *_] = text_request().forget
    with torch.inference_mode():
        right = whole(input_ids=torch.tensor([example.tokens])).logits[0, example.first - 1 : -1]
        assert torch.allclose(network.ask(Scores(), [example]).logits, right, atol=1e-5)
    assert "its language model is read, and written" in say_left_out(str(tmp_path / "in"))
    network.save(tmp_path / "out")
    again = open_model(tmp_path / "out")
    assert again.fingerprint() == network.fingerprint()
    assert say_left_out(str(tmp_path / "out")) == ""


def test_a_model_that_sees_and_was_not_tried_is_refused(tmp_path: Path):
    folder_of(tmp_path / "in")
    change(tmp_path / "in", architectures=["LlavaNextForConditionalGeneration"])
    with pytest.raises(ModelRefused, match="is neither"):
        open_model(tmp_path / "in")
    shutil.rmtree(tmp_path / "in")
