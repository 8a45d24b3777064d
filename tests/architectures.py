"""Every causal architecture of the installed transformers, small enough to be built in a second.

`tiny(kind)` is a configuration with all widths shrunk: hidden size 32, 64 tokens, 4 experts, and 4 blocks, among which
is each kind of block that the architecture has by default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    MusicgenForCausalLM,
    MusicgenMelodyForCausalLM,
    PretrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

CAUSAL = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""The names of all causal architectures."""
VOCABULARY, BLOCKS = 64, 4
SIZES = {
    64: "vocab_size decoder_vocab_size unpadded_vocab_size vocab_size_per_layer_input pronunciation_vocab_size "
    "shape_vocab_size encoder_hash_byte_group_vocab max_position_embeddings n_positions n_ctx max_seq_len "
    "model_max_length context_length max_target_positions max_source_positions ngram_vocab_size_base mem_len "
    "image_size",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size dim_ff dff d_inner n_inner "
    "feed_forward_size intermediate_size_mlp dense_intermediate_size expert_ffn_hidden_size "
    "centroid_intermediate_top_k",
    32: "hidden_size d_model n_embd dim_model_base emb_dim embedding_dim embedding_size word_embed_proj_dim lru_width "
    "attention_hidden_size input_embedding_size output_embedding_size ple_embed_dim prompt_mid_dim num_mel_bins "
    "backbone_hidden_size hidden_size_global mm_embed_dim output_proj_dims audio_embed_dim",
    24: "moe_intermediate_size shared_intermediate_size shared_expert_intermediate_size "
    "shared_experts_intermediate_size moe_shared_expert_intermediate_size",
    16: "index_n_heads kv_lora_rank q_lora_rank o_lora_rank router_hidden_size num_centroids hc_lowrank loop_gate_rank "
    "state_size mamba_d_state ssm_state_size qk_head_dim mamba_headdim chunk_size mamba_chunk_size "
    "n_mels num_buckets window_size attention_window_size prompt_length position_bias_num_buckets "
    "pronunciation_embed_dim shape_embed_dim patch_size max_patches laurel_rank adapter_rank d_rel rel_extent "
    "mm_posemb_size position_embedding_size original_max_position_embeddings hidden_size_per_layer_input",
    8: "head_dim qk_nope_head_dim v_head_dim kv_channels index_head_dim linear_key_head_dim linear_value_head_dim "
    "linear_head_dim mamba_d_head mamba_head_dim attention_head_size attention_head_dim dim_head d_head swa_head_dim "
    "gated_norm_rank n_mamba_heads mamba_n_heads mamba_num_heads time_step_rank mamba_dt_rank rotary_dim "
    "sliding_window sliding_window_size local_attention attention_chunk_size index_topk block_size "
    "global_head_dim local_attn_chunk_length lsh_attn_chunk_length",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
    "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads "
    "linear_num_heads num_experts n_routed_experts num_local_experts moe_num_experts qk_rope_head_dim "
    "num_hidden_layers decoder_layers encoder_layers depth n_layer n_layers num_layers num_blocks num_decoder_layers",
    2: "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_k top_k_experts moe_top_k num_encoder_layers n_groups "
    "mamba_n_groups num_layers_per_stack n_input_layers n_recurrent_layers n_output_layers zero_expert_num o_groups "
    "num_kv_shared_layers index_block_size num_global_key_value_heads",
    1: "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers moe_layer_start_index "
    "mlp_only_layers_count num_random_blocks",
    0: "pad_token_id",
}
SHAPE = {name: size for size, names in SIZES.items() for name in names.split()}
DECODERS = {"musicgen": MusicgenForCausalLM, "musicgen_melody": MusicgenMelodyForCausalLM}
"""What the causal class reads is the configuration of the decoder alone."""
KINDS_OF_BLOCKS = ("layer_types", "layers_block_type", "mlp_layer_types")
QWEN4 = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
GEMMA4_SHARED = {
    "model_type": "gemma4_text",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "global_head_dim": 8,
    "vocab_size": 64,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
ODD: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "bamba": {"attn_layer_indices": [2]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba"], "shared_intermediate_size": 24},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "dots3_note_vision_encoder": {"adapter_in_dim": 32, "adapter_out_dim": 32},
    "dots3_note_audio_encoder": {"adapter_input_size": 32, "adapter_out_dim": 32},
    "dory": {"num_hidden_layers": 4, "n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots3_note_text": {"layer_types": ["indexed_attention"] * 4, "head_dim": 12, "qk_nope_head_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma4_assistant": {"text_config": GEMMA4_SHARED},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {**QWEN4, "indexer_compress_ratio": 2},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": (8, 8),
        "axial_pos_embds_dim": (16, 16),
    },
    "longcat_flash": {"qk_head_dim": 12, "head_dim": 4},
    "prophetnet": {"num_encoder_layers": 4},
    "hrm_text": {"num_hidden_layers": 16},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 64},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "zamba": {
        "attention_hidden_size": 64,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "hybrid"],
    },
}
"""What the names above do not say, by architecture or by the type of a part's configuration."""


def tiny(kind: str, **changes: Any) -> PretrainedConfig:
    """The configuration of one architecture, small. `changes`: other sizes, or values that only this one has."""
    return small(CONFIG_MAPPING[kind], kind, changes, ODD)


def build(kind: str, device: str = "cpu", **changes: Any) -> nn.Module:
    """A tiny model of it with random weights (none on the meta device), which draws nothing at random in its pass."""
    torch.manual_seed(0)
    config = tiny(kind, **changes)
    with torch.device(device):
        if kind in DECODERS:
            return DECODERS[kind](config.decoder).eval()
        return AutoModelForCausalLM.from_config(config).eval()


def tokens(kind: str) -> Tensor:
    """A few tokens that a model of it reads, [1, 16]; the musical ones read 4 codebooks of them, [4, 16]."""
    return torch.arange(1, 17)[None].repeat(4 if kind in DECODERS else 1, 1)


def small(
    config_class: type[PretrainedConfig], kind: str, changes: dict[str, Any], every: dict[str, dict[str, Any]]
) -> PretrainedConfig:
    """A configuration and its parts with all sizes shrunk; `every` says what is odd in each."""
    odd = every.get(kind, {})
    parts = {name: small(part, part.model_type, changes, every) for name, part in _parts(config_class, odd).items()}
    known = {field.name for field in dataclasses.fields(config_class)}
    wanted = {name: size for name, size in (SHAPE | changes).items() if name in known}
    if "kv_lora_rank" in known:  # keys and values are made for every head
        wanted["num_key_value_heads"] = wanted["num_attention_heads"]
    wanted |= parts | odd
    kinds = {name: _kinds(config_class, name) for name in KINDS_OF_BLOCKS if name in known - odd.keys()}
    return config_class(**{name: value for name, value in kinds.items() if value} | wanted)


def _parts(config_class: type[PretrainedConfig], odd: dict[str, Any]) -> dict[str, type[PretrainedConfig]]:
    """The classes of the configurations inside of it, such as a vision tower's."""
    found: dict[str, Any] = {name: part for name, part in config_class.sub_configs.items() if name not in odd}
    if AutoConfig in found.values():  # then only a default says which
        found = {name: type(getattr(config_class(), name)) for name in found}
    return {name: part for name, part in found.items() if dataclasses.is_dataclass(part) and part.model_type}


def _kinds(config_class: type[PretrainedConfig], name: str) -> list[str]:
    """Each kind of block once at least, in the order in which the architecture has them by default."""
    default = getattr(config_class(), name, None) or []
    kinds = list(dict.fromkeys(default))
    short = default[:BLOCKS] if set(default[:BLOCKS]) == set(kinds) else (kinds * BLOCKS)[: max(BLOCKS, len(kinds))]
    return short if len(kinds) > 1 else []
