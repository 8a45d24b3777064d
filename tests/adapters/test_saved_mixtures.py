"""Adapters of a mixture's experts as files that peft reads back."""

import json

import torch
from peft import PeftModel

from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from tests.adapters.mixtures import KIND, logits, mixture, shaken

torch.set_num_threads(1)


@KIND
def test_a_saved_bounded_adapter_of_experts_is_read_back_by_peft(kind, tmp_path):
    network = mixture(kind)
    adapted = shaken(network, Bounded(rank=4, omega=30.0))
    Bounded().save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["omega"]) == ("BOUNDED", 4, 30.0)
    read = PeftModel.from_pretrained(mixture(kind).module, tmp_path / "adapter").eval()
    assert torch.equal(logits(network.fork(read)), logits(adapted))


def test_a_saved_lora_of_experts_is_pefts_own_and_read_back_without_expunge(tmp_path, script):
    network = mixture()
    network.module.save_pretrained(tmp_path / "base")
    adapted = shaken(network, LoRA(rank=4, targets="all"))
    LoRA(rank=4, targets="all").save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 16.0)
    assert len(config["target_parameters"]) == 2 * 2
    done = script(
        "import sys, torch; from transformers import AutoModelForCausalLM as M; from peft import PeftModel;"
        f"m = PeftModel.from_pretrained(M.from_pretrained(r'{tmp_path / 'base'}'), r'{tmp_path / 'adapter'}').eval();"
        "assert not any(name.startswith('expunge.') for name in sys.modules);"
        f"torch.save(m(input_ids=torch.arange(12)[None]).logits, r'{tmp_path / 'logits.pt'}')"
    )
    assert done.code == 0, done.err
    with torch.inference_mode():
        ours = adapted.module(input_ids=torch.arange(12)[None]).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), ours, atol=1e-4)


def test_a_lora_that_peft_would_put_elsewhere_is_saved_in_our_form_and_says_so(tmp_path):
    """peft takes a DeepSeek's plain MLP for parts of the experts that older transformers had."""
    network = mixture("deepseek_v3")
    adapted = shaken(network, LoRA())
    LoRA().save(adapted, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["map"]) == ("BOUNDED", "identity")
    read = PeftModel.from_pretrained(mixture("deepseek_v3").module, tmp_path / "adapter").eval()
    assert torch.equal(logits(network.fork(read)), logits(adapted))
