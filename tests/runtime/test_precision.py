"""What is compared to within rounding is read in full precision, whatever the user set; then it is as they set it."""

from collections.abc import Iterator

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTImageProcessorPil

from expunge.core.question import Text
from expunge.models.language import LanguageModel
from expunge.models.picture_probe import refuse_misfit
from expunge.runtime.precision import full_precision
from tests.families import llama, text_request, vit

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def set_all() -> tuple[object, ...]:
    return (torch.get_float32_matmul_precision(), *(each.fp32_precision for each in BACKENDS))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    with full_precision():
        yield


@pytest.fixture(params=["highest", "high", "medium"])
def chosen(request) -> tuple[object, ...]:
    torch.set_float32_matmul_precision(request.param)
    return set_all()


def seen_by(module: torch.nn.Module) -> set[str]:
    """Fills with the precision of each pass from now on."""
    found: set[str] = set()
    module.register_forward_pre_hook(lambda *_: found.add(torch.get_float32_matmul_precision()))
    return found


def test_what_the_user_chose_comes_back(chosen):
    with full_precision():
        assert set_all() == ("highest", "ieee", "ieee")
    assert set_all() == chosen
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert set_all() == chosen


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_chosen_for_one_backend_comes_back(backend):
    backend.fp32_precision = "tf32"
    own = [each.fp32_precision for each in BACKENDS]
    with full_precision():
        assert set_all() == ("highest", "ieee", "ieee")
    assert [each.fp32_precision for each in BACKENDS] == own


def test_how_a_text_model_is_read_is_found_in_full_precision(chosen):
    module = LlamaForCausalLM(
        LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    seen = seen_by(module)
    LanguageModel.of(module, None)
    assert seen == {"highest"}
    assert set_all() == chosen


def test_how_text_is_written_is_found_in_full_precision(chosen):
    network = LanguageModel.of(llama().module, llama().tokenizer)
    seen = seen_by(network.module.model)
    network.ask(Text(4), text_request().forget)
    assert "highest" in seen
    assert set_all() == chosen


def test_a_classifier_is_tried_in_full_precision(chosen):
    network = vit()
    seen = seen_by(network.module)
    refuse_misfit("vit", network.module, ViTImageProcessorPil(size={"height": 8, "width": 8}), 3, len(network.classes))
    assert seen == {"highest"}
    assert set_all() == chosen
