"""Every architecture of image classifiers of the installed transformers, small enough to be built in a second.

`build_image(name)` makes a model of it. `NAME:SECOND` is another classifier of the same architecture, `NAME+SETTING`
one with other settings. `processor_of(name, ...)` is its own image processor, for small pictures.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from tests.architectures import small

SIDE, CLASSES = 32, 5
CLASS_NAMES = {
    name: (each,) if isinstance(each, str) else tuple(each)
    for name, each in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
}
IMAGE_KINDS = {
    name if k == 0 else f"{name}:{each.rpartition('Classification')[2] or each[len('Perceiver') :]}": each
    for name, classes in CLASS_NAMES.items()
    for k, each in enumerate(classes)
}
"""The class of each classifier, by name."""
SHAPE = {"image_size": SIDE, "patch_size": 4, "num_labels": CLASSES, "encoder_stride": 4}
FOUR = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 8, "depths": [2, 2], "num_heads": [1, 2], "window_size": 4}
ODD: dict[str, dict[str, Any]] = {
    "bit": {**FOUR, "embedding_size": 8, "num_groups": 4},
    "convnext": {**FOUR, "layer_scale_init_value": 1.0},
    "convnextv2": FOUR,
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "kernel_size": 3, "dilations": [[1], [1]]},
    "donut-swin": WINDOWS,
    "efficientnet": {
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "hidden_dim": 320,
        "in_channels": [16, 16, 24],
        "out_channels": [16, 24, 40],
        "kernel_sizes": [3, 3, 5],
        "strides": [1, 2, 2],
        "num_block_repeats": [1, 1, 2],
        "expand_ratios": [1, 6, 6],
    },
    "focalnet": {
        **FOUR,
        "embed_dim": 8,
        "patch_size": 2,
        "focal_levels": [2, 2, 2, 2],
        "focal_windows": [3, 3, 3, 3],
    },
    "hgnet_v2": {
        **FOUR,
        "embedding_size": 8,
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 16, 24],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 16, 24, 32],
        "stage_num_blocks": [1, 1, 2, 1],
        "stage_numb_of_layers": [2, 2, 2, 2],
    },
    "hiera": {
        "embed_dim": 8,
        "image_size": [SIDE, SIDE],
        "patch_size": [3, 3],
        "patch_stride": [2, 2],
        "patch_padding": [1, 1],
        "depths": [1, 1, 2],
        "num_heads": [1, 2, 4],
        "num_query_pool": 2,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, True, False],
    },
    "imagegpt": {"vocab_size": 17, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "levit": {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 3, 4],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "patch_size": 16,
    },
    "mobilenet_v1": {"depth_multiplier": 0.0625},
    "mobilenet_v2": {"depth_multiplier": 0.0625, "finegrained_output": False},
    "mobilevit": {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32], "patch_size": 2},
    "mobilevitv2": {
        "base_attn_unit_dims": [16, 24, 32],
        "n_attn_blocks": [1, 1, 1],
        "patch_size": 2,
        "width_multiplier": 0.125,
        "image_size": 64,
    },
    "perceiver": {
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 1,
    },
    "poolformer": {**FOUR, "layer_scale_init_value": 1.0},
    "pp_lcnet": {
        "stem_channels": 8,
        "class_expand": 32,
        "block_configs": [
            [[3, 8, 16, 1, False]],
            *[[[3, 16, 16, 2, False]]] * 2,
            [[5, 16, 24, 1, True]],
            [[5, 24, 32, 2, True]],
        ],
    },
    "pvt": {**FOUR, "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2, 2, 2, 2], "patch_sizes": [4, 2, 2, 2]},
    "pvt_v2": {**FOUR, "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2, 2, 2, 2], "image_size": [SIDE, SIDE]},
    "regnet": {**FOUR, "embedding_size": 8, "groups_width": 8},
    "resnet": {**FOUR, "embedding_size": 8},
    "segformer": {**FOUR, "num_attention_heads": [1, 2, 3, 4], "mlp_ratios": [2, 2, 2, 2]},
    "swiftformer": {"embed_dims": [8, 16, 24, 32], "depths": [1, 1, 1, 2], "layer_scale_init_value": 1.0},
    "swin": WINDOWS,
    "swinv2": {**WINDOWS, "pretrained_window_sizes": [0, 0]},
    "textnet": {
        "stem_out_channels": 8,
        "hidden_sizes": [8, 8, 16, 16, 32],
        "conv_layer_kernel_sizes": [[[3, 3]], [[1, 3], [3, 3]], [[3, 1]], [[3, 3]]],
        "conv_layer_strides": [[2], [1, 2], [2], [1]],
        "image_size": [SIDE, SIDE],
    },
}
"""What `SHAPE` and the sizes of language models do not say."""
IMAGE_SITUATIONS: dict[str, dict[str, Any]] = {
    "beit+biases": {"use_relative_position_bias": True, "use_absolute_position_embeddings": True},
    "beit+shared": {"use_shared_relative_position_bias": True, "use_mean_pooling": False},
    "bit+same": {"global_padding": "SAME", "layer_type": "bottleneck"},
    "dinov2+swiglu": {"use_swiglu_ffn": True},
    "focalnet+conv": {"use_conv_embed": True, "use_post_layernorm": True, "normalize_modulator": True},
    "pvt_v2+linear": {"linear_attention": True},
    "regnet+x": {"layer_type": "x"},
    "resnet+basic": {"layer_type": "basic", "downsample_in_first_stage": True},
    "swin+absolute": {"use_absolute_embeddings": True},
    "vit+grey": {"num_channels": 1},
    "vit+dropout": {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5},
    "beit+paths": {"drop_path_rate": 0.9},
    "mobilenet_v2+dropout": {"classifier_dropout_prob": 0.9},
    "vit+labels": {"problem_type": "multi_label_classification"},
    "vit+number": {"problem_type": "regression"},
    "vit+one": {"num_labels": 1},
}
"""Settings that change how an architecture reads, by name."""
PLAIN = "ViTImageProcessorPil"
PROCESSORS: dict[str, dict[str, Any]] = {
    "imagegpt": {
        "clusters": [[k / 8 - 1, k / 16 - 0.5, 0.9 - k / 9] for k in range(17)],
        "size": {"height": 8, "width": 8},
    },
    "siglip2": {"patch_size": 4, "max_num_patches": 16},
    "textnet": {"do_center_crop": True},  # without it pictures of unequal sides stay of unequal shapes
}
"""Settings of an architecture's own image processor."""


def build_image(name: str) -> nn.Module:
    """A tiny classifier with random weights, in evaluation mode."""
    torch.manual_seed(0)
    kind = name.partition("+")[0].partition(":")[0]
    odd = ODD | {kind: ODD.get(kind, {}) | IMAGE_SITUATIONS.get(name, {})}
    config = small(CONFIG_MAPPING[kind], kind, SHAPE, odd)
    config.num_labels = IMAGE_SITUATIONS.get(name, {}).get("num_labels", CLASSES)
    return getattr(transformers, IMAGE_KINDS[name.partition("+")[0]])(config).eval()


def processor_of(name: str, side: int, channels: int) -> Any:
    """The architecture's own image processor, to `side` pixels; a ViT's where it has none on Pillow."""
    kind = name.partition("+")[0].partition(":")[0]
    made = getattr(transformers, (IMAGE_PROCESSOR_MAPPING_NAMES.get(kind) or {}).get("pil", PLAIN))
    default = made(**PROCESSORS.get(kind, {})).to_dict()
    sizes = {key: dict.fromkeys(default[key], side) for key in ("size", "crop_size") if default.get(key)}
    grey = {"image_mean": [0.5], "image_std": [0.5]} if channels == 1 else {}
    return made(**(sizes | grey | PROCESSORS.get(kind, {})))
