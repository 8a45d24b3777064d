"""Where models come from: every refusal on folders made by hand, none of which touches the network."""

import json
import os
import pickle
import shutil
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from expunge.errors import ModelRefused, Refusal, UsageRefused
from expunge.models.language import LanguageModel
from expunge.models.open import open_network
from expunge.models.source import Source, check_folder, config_of, load_module, locate, read_json
from expunge.run.checks import check_out

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def folder(root: Path, config: object = CONFIG, **files: str | bytes) -> Path:
    """A model folder of a configuration and some files; `weights_bin` stands for `weights.bin`."""
    made = root / "model"
    made.mkdir(exist_ok=True)
    (made / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name, content in files.items():
        (made / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


def indexed(root: Path, weight_map: object) -> Path:
    made = folder(root)
    (made / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (made / "a.safetensors").write_bytes(b"")
    return made


def refusal(made: Path, kind: type[Refusal] = ModelRefused) -> str:
    with pytest.raises(kind) as refused:
        locate(str(made))
    said = refused.value.line()
    assert "\n" not in said
    return said


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path: Path):
    """A hub that answers nothing, in case that something asks it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def test_hub_ids_are_read_with_and_without_a_revision():
    assert locate("org/name") == Source("org/name")
    assert locate("gpt2") == Source("gpt2")
    assert locate("org/name@main") == Source("org/name", "main")
    assert locate("org/name@refs/pr/1") == Source("org/name", "refs/pr/1")
    assert locate("org/name@" + "a" * 40).arguments == {
        "pretrained_model_name_or_path": "org/name",
        "trust_remote_code": False,
        "revision": "a" * 40,
    }
    assert not locate("org/name").local


@pytest.mark.parametrize(
    "text",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "/none/such",
        "./none",
        "~/none",
        "file:///etc/passwd",
        "https://example.org/model",
        "org\0name",
        "org/na\nme",
        "org/na\x1b[31mme",
        "-model",
        "--trust-remote-code",
        "",
        " ",
        "x" * 300,
        "org/" + "x" * 5000,
        "a/b/c",
        "org/../name",
        "org/.hidden",
        "org/na me",
        "org/name@",
        "org/name@a b",
        "org/name@../../x",
        "none.gguf",
        "org/model.gguf",
    ],
)
def test_a_name_that_is_neither_here_nor_a_hub_id_is_a_mistake_of_usage(text: str):  # M14
    if text == "org/name@":
        assert locate(text) == Source("org/name")
        return
    with pytest.raises(UsageRefused) as refused:
        locate(text)
    refused.value.line().encode()
    assert "\x1b" not in refused.value.line()


def test_a_folder_and_a_gguf_file_are_found(model: Path, tmp_path: Path):
    assert locate(str(model)) == Source(str(model))
    assert locate(str(model)).local
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert locate(str(tmp_path / "x.gguf")) == Source(str(tmp_path), gguf="x.gguf")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path):
    assert "config.json is not there. Give a transformers folder." in refusal(tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert "holds GGUF files, of which one must be named." in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"a": "\ud800"}'])
def test_a_configuration_that_is_no_json_object_is_refused(text: str, tmp_path: Path):
    made = folder(tmp_path)
    (made / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    assert "config.json is not JSON" in refusal(made) or "config.json is not a JSON object" in refusal(made)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelRefused, match="is not JSON"):
        read_json(tmp_path / "config.json")


def test_missing_shards_are_listed(tmp_path: Path):  # M06
    made = indexed(tmp_path, {"w": "b.safetensors", "v": "a.safetensors", "u": "c.safetensors"})
    assert "shards are missing: b.safetensors, c.safetensors. Fetch them." in refusal(made)


@pytest.mark.parametrize("weight_map", [{}, [], None, "a.safetensors", 3])
def test_an_index_that_names_nothing_is_refused(weight_map: object, tmp_path: Path):  # M06
    assert "index.json: names no shards. Fetch it again." in refusal(indexed(tmp_path, weight_map))


@pytest.mark.parametrize(
    "name",
    ["../a.safetensors", "/etc/passwd", "deep/a.safetensors", "..", "", "a.bin", "a\\b.safetensors", 3, None]
    + ["../" * 9 + "etc/passwd", "./a.safetensors"],
)
def test_an_index_that_leads_elsewhere_or_to_a_pickle_is_refused(name: object, tmp_path: Path):  # M07, M10
    made = indexed(tmp_path, {"v": "a.safetensors", "w": name})
    (made / "a.bin").write_bytes(b"x")
    assert f"names '{name}', which is no plain .safetensors file. Fix the index." in refusal(made)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path):  # M08
    (tmp_path / "blobs").mkdir()
    for place in (tmp_path / "secret", tmp_path / "blobs" / "secret"):
        place.write_text("x")
        made = folder(tmp_path, model_safetensors=b"")
        (made / "link").symlink_to(place)
        assert f"{made / 'link'}: links to a file outside the model's folder." in refusal(made)
        (made / "link").unlink()
    (made / "deep").mkdir()
    (made / "deep" / "link").symlink_to(tmp_path)
    assert "deep/link: links to a file outside" in refusal(made)


def test_a_link_within_the_folder_or_to_the_blobs_of_the_hub_s_cache_is_followed(tmp_path: Path):
    made = folder(tmp_path, weights=b"")
    (made / "model.safetensors").symlink_to(made / "weights")
    check_folder(made)
    cached = tmp_path / "models--org--name"
    (cached / "blobs").mkdir(parents=True)
    (cached / "snapshots").mkdir()
    made = made.rename(cached / "snapshots" / "0123")
    (made / "model.safetensors").unlink()
    (cached / "blobs" / "abc").write_bytes(b"")
    (made / "model.safetensors").symlink_to("../../blobs/abc")
    check_folder(made)


class Hostile:
    """Writes a canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_and_never_opened(name: str, tmp_path: Path):  # M09, M10
    made = folder(tmp_path)
    (made / name).write_bytes(pickle.dumps(Hostile(tmp_path / "canary")))
    assert "holds pickled weights only, which can run code when read. Convert them" in refusal(made)
    assert not (tmp_path / "canary").exists()
    (made / name).unlink()
    assert "no model.safetensors in it." in refusal(made)


@pytest.mark.parametrize(
    "config",
    [
        {**CONFIG, "auto_map": {"AutoConfig": "evil.Config"}},
        {**CONFIG, "text_config": {"auto_map": {"AutoModel": "evil.Model"}}},
        {**CONFIG, "_attn_implementation": "org/kernel"},
        {**CONFIG, "attn_implementation": {"text_config": "org/kernel"}},
        {**CONFIG, "text_config": {"_attn_implementation": "org/kernel"}},
    ],
)
def test_code_of_its_own_is_refused_at_once_and_never_run(config: dict, tmp_path: Path):  # M12
    canary = tmp_path / "canary"
    made = folder(tmp_path, config, model_safetensors=b"", evil_py=f"import os; os.mkdir({str(canary)!r})")
    said = refusal(made)
    assert "code of its own (auto_map)" in said or "an attention kernel to download" in said
    assert not canary.exists()


def test_an_adapter_s_configuration_that_would_replace_the_model_by_its_base_is_refused(model: Path, tmp_path: Path):
    made = Path(shutil.copytree(model, tmp_path / "model"))
    adapter = {"base_model_name_or_path": "org/other", "peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]}
    (made / "adapter_config.json").write_text(json.dumps(adapter))
    assert "holds an adapter (adapter_config.json) beside a model" in refusal(made)


def test_a_hub_id_that_cannot_be_reached_is_refused_as_a_model():  # C09
    with pytest.raises(ModelRefused, match=r"^org/none: there is no such folder here, and the hub has no such model"):
        config_of(Source("org/none"))


@pytest.mark.parametrize("name", ["smolm2", "org/smolm2"])
def test_a_name_is_looked_up_once(name: str, monkeypatch):  # C09
    asked = []

    class Busy(BaseHTTPRequestHandler):
        """A hub that is always too busy, which its own library answers by asking again."""

        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(503)
            self.end_headers()

        def log_message(self, *told):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as hub:
        Thread(target=hub.serve_forever, daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        place = f"http://127.0.0.1:{hub.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", place)
        with pytest.raises(ModelRefused, match=rf"^{name}: there is no such folder here, and the hub has no such"):
            config_of(locate(name))
        hub.shutdown()
    assert asked == [f"/{name}/resolve/main/config.json"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "no-such-type"},
        {"model_type": ["llama"]},
        {**CONFIG, "hidden_size": "wide"},
        {**CONFIG, "architectures": 3},
        {**CONFIG, "num_hidden_layers": -1},
    ],
)
def test_a_configuration_that_no_class_can_read_is_refused(config: dict, tmp_path: Path):  # M25
    made = folder(tmp_path, config, model_safetensors=b"")
    with pytest.raises(ModelRefused) as refused:
        open_network(str(made))
    assert str(made) in refused.value.line()


def test_a_model_that_is_neither_a_decoder_nor_a_classifier_is_refused(tmp_path: Path):  # M25
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=10)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelRefused, match="BertModel is neither a graph network nor a causal language model"):
        open_network(str(tmp_path))


def copied(model: Path, root: Path) -> Path:
    return Path(shutil.copytree(model, root / "model"))


def loading(made: Path) -> str:
    with pytest.raises(ModelRefused) as refused:
        open_network(str(made))
    assert str(made) in refused.value.line()
    return refused.value.line()


@pytest.mark.parametrize("size", [0, 7, 8, 500, -1])
def test_torn_weights_are_refused(size: int, model: Path, tmp_path: Path):  # M01
    made = copied(model, tmp_path)
    content = (made / "model.safetensors").read_bytes()
    (made / "model.safetensors").write_bytes(content[:size])
    assert "could not be loaded" in loading(made)


@pytest.mark.parametrize("header", [b"{}", b"not json", b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'])
def test_weights_with_another_header_are_refused(header: bytes, model: Path, tmp_path: Path):  # M02
    made = copied(model, tmp_path)
    (made / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "could not be loaded: SafetensorError" in loading(made)
    (made / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + header)
    assert "could not be loaded: SafetensorError" in loading(made)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, model: Path, tmp_path: Path):  # M04
    made = copied(model, tmp_path)
    weights = load_file(made / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors hold NaN or Inf (model.norm.weight, ...)" in loading(made)


def test_a_missing_tensor_is_refused_and_not_made_up(model: Path, tmp_path: Path):  # M06
    made = copied(model, tmp_path)
    weights = load_file(made / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors are missing (model.layers.1.mlp.up_proj.weight, ...)" in loading(made)


def test_a_tensor_of_another_shape_is_refused(model: Path, tmp_path: Path):  # M15
    made = copied(model, tmp_path)
    weights = load_file(made / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, made / "model.safetensors", metadata={"format": "pt"})
    assert "1 tensors have another shape than config.json says (first: model.norm.weight, [5] for [" in loading(made)


def test_a_tied_output_matrix_is_not_missed(model: Path, tmp_path: Path):  # M23
    made = copied(model, tmp_path)
    module = AutoModelForCausalLM.from_pretrained(made)
    module.config.tie_word_embeddings = True
    module.lm_head.weight = module.model.embed_tokens.weight
    module.save_pretrained(made)
    assert "lm_head.weight" not in load_file(made / "model.safetensors")
    network = open_network(str(made))
    assert isinstance(network, LanguageModel)
    assert torch.equal(network.module.lm_head.weight, module.model.embed_tokens.weight)


def test_a_tokenizer_that_is_torn_or_missing_is_refused(model: Path, tmp_path: Path):
    made = copied(model, tmp_path)
    config = json.loads((made / "tokenizer_config.json").read_text())
    for odd in ("512", [512], {}):  # what transformers looks at when a text is read, not when the file is
        (made / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": odd}))
        assert "its tokenizer could not be loaded" in loading(made)
    (made / "tokenizer.json").write_text("{")
    assert "its tokenizer could not be loaded" in loading(made)


def test_a_sharded_model_is_read(model: Path, tmp_path: Path):
    module = AutoModelForCausalLM.from_pretrained(model)
    made = copied(model, tmp_path)
    (made / "model.safetensors").unlink()
    module.save_pretrained(made, max_shard_size="50KB")
    assert len(list(made.glob("*.safetensors"))) > 1
    whole = load_module(locate(str(made)), AutoModelForCausalLM, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), module.parameters(), strict=True))
    shard = sorted(made.glob("*.safetensors"))[0]
    shard.unlink()
    assert f"shards are missing: {shard.name}" in loading(made)


def test_a_tensor_that_stands_twice_in_a_header_is_refused(model: Path, tmp_path: Path):  # M05
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    one = json.dumps(header)
    twice = (one[:-1] + f", {json.dumps(name)}: {json.dumps(header[name])}" + "}").encode()
    (folder / "model.safetensors").write_bytes(len(twice).to_bytes(8, "little") + twice + content[8 + length :])
    with pytest.raises(ModelRefused, match="its header names a tensor, or a part of one, twice"):
        locate(str(folder))


def test_a_link_to_itself_is_refused(model: Path, tmp_path: Path):  # M08
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    (folder / "more").symlink_to(folder / "more")
    with pytest.raises(ModelRefused, match="leads to nothing, or to itself"):
        locate(str(folder))
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with pytest.raises(UsageRefused):
        locate(str(tmp_path / "self"))
    for out in (tmp_path / "self", tmp_path / "self" / "out"):
        with pytest.raises(UsageRefused, match="is a link"):
            check_out(out, "model")


def test_no_bar_of_a_library_is_drawn_from_python_and_its_own_setting_stays(model: Path, tmp_path: Path, capfd):
    from transformers.utils import logging

    drawn = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    try:
        open_network(str(model)).save(tmp_path / "copy")
        assert logging.is_progress_bar_enabled()
    finally:
        if not drawn:
            logging.disable_progress_bar()
    assert capfd.readouterr().err == ""
