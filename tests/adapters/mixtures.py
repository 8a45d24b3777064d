"""Tiny mixtures of several architectures, and adapters in them that are far from their start."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
)

from expunge.adapters.bounded import Bounded
from expunge.adapters.lora import LoRA
from expunge.core.model import Network
from expunge.core.question import Scores
from expunge.core.request import Request
from expunge.data.text import Passage
from expunge.models.language import LanguageModel

torch.set_num_threads(1)

V, EXPERTS, TOP, WIDTH, INNER = 40, 6, 3, 16, 12
SHAPE = {
    "vocab_size": V,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 0,
    "bos_token_id": None,
    "pad_token_id": None,
    "num_experts_per_tok": TOP,
}
CONFIGS = {
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=EXPERTS),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=EXPERTS),
    "qwen2_moe": Qwen2MoeConfig(
        **SHAPE, num_experts=EXPERTS, moe_intermediate_size=INNER, shared_expert_intermediate_size=8
    ),
    "gpt_oss": GptOssConfig(**{**SHAPE, "pad_token_id": 0}, num_local_experts=EXPERTS, head_dim=4),
    "deepseek_v3": DeepseekV3Config(
        **SHAPE,
        n_routed_experts=EXPERTS,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=INNER,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=4,
        v_head_dim=8,
    ),
}
KIND = pytest.mark.parametrize("kind", CONFIGS)
ONE_BY_ONE = pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])


def mixture(kind: str = "mixtral", implementation: str = "grouped_mm") -> LanguageModel:
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(CONFIGS[kind]).eval()
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    module.set_experts_implementation(implementation)
    return LanguageModel.of(module.requires_grad_(False), None)


def texts(seed: int) -> tuple[Passage, ...]:
    draw = torch.Generator().manual_seed(seed)
    tokens = [tuple(torch.randint(1, V, (5 + k,), generator=draw).tolist()) for k in range(4)]
    return tuple(Passage(f"{seed}-{k}", each, 2, "", f"{seed} {k}") for k, each in enumerate(tokens))


REQUEST = Request(forget=texts(0), retain=texts(1))


def logits(network: Network) -> torch.Tensor:
    with torch.inference_mode():
        return network.ask(Scores(), REQUEST.forget).logits


def shaken(network: LanguageModel, adapter: Bounded | LoRA) -> LanguageModel:
    """The adapted network with all factors far from their start."""
    adapted = adapter.insert(network, REQUEST)
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.trainable().values():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return adapted
