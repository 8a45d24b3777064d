"""The residual networks for CIFAR: their size, their shortcuts, and their folders."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from expunge.core.question import LogProbabilities
from expunge.data.images import ImageRecord, encode
from expunge.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from expunge.models.open import open_network
from tests.benchmarks import tiny_cifar

PRETRAINED = Path(__file__).parents[3] / "shared/data/resnet_cifar10/resnet20.safetensors"

torch.set_num_threads(1)


@pytest.mark.parametrize(("blocks", "size"), [(3, 269_722), (9, 853_018)])
def test_it_has_as_many_parameters_as_the_published_networks(blocks: int, size: int):
    """ResNet-20 and ResNet-56 without weights in shortcuts."""
    with torch.device("meta"):
        module = CifarResNetForImageClassification(CifarResNetConfig(blocks, num_labels=10))
    assert sum(p.numel() for p in module.parameters()) == size


def test_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros_on_both_sides():
    block = CifarResNetForImageClassification(CifarResNetConfig(1)).eval().layer2[0]
    torch.nn.init.zeros_(block.bn2.weight)  # so that the shortcut alone is left
    x = torch.rand(1, 16, 4, 4)
    made = block(x)
    assert made.shape == (1, 32, 2, 2)
    assert torch.equal(made[:, 8:24], x[:, :, ::2, ::2])
    assert not made[:, :8].any()
    assert not made[:, 24:].any()


def test_its_weights_start_as_the_paper_has_them_and_a_seed_fixes_them():
    torch.manual_seed(0)
    first = CifarResNetForImageClassification(CifarResNetConfig(1))
    torch.manual_seed(0)
    second = CifarResNetForImageClassification(CifarResNetConfig(1))
    assert torch.equal(first.layer3[0].conv2.weight, second.layer3[0].conv2.weight)
    assert first.layer3[0].conv2.weight.detach().std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_a_folder_opens_and_is_written_again_though_its_file_lacks_the_counters_of_batches(tmp_path: Path):
    network = tiny_cifar.network()
    network.save(tmp_path / "first")
    file = tmp_path / "first" / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if not name.endswith("num_batches_tracked")}
    save_file(kept, file, {"format": "pt"})
    opened = open_network(str(tmp_path / "first"))
    opened.save(tmp_path / "second")
    assert json.loads((tmp_path / "second" / "config.json").read_text())["depth"] == 1
    record = ImageRecord("0", 1, Image.new("RGB", (8, 8), (200, 30, 90)), 0)
    picture = encode([record], network.processor, network.classes, tmp_path)
    said = [
        m.ask(LogProbabilities(), picture).log_probs for m in (network, opened, open_network(str(tmp_path / "second")))
    ]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


@pytest.mark.skipif(not PRETRAINED.is_file(), reason=f"{PRETRAINED} is not there")
def test_the_pretrained_networks_tensors_are_its_own():
    module = CifarResNetForImageClassification(CifarResNetConfig(3, num_labels=10))
    missing, unknown = module.load_state_dict(load_file(PRETRAINED), strict=False)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)
