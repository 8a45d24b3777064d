"""The layer that a question about hidden states names."""

import pytest

from expunge.core.question import HiddenStates
from expunge.errors import UsageRefused


@pytest.mark.parametrize(
    ("layer", "block"), [(0, 0), (7, 7), (0.0, 0), (0.5, 4), (0.75, 6), (0.99, 7)], ids=lambda given: repr(given)
)
def test_a_layer_is_a_number_or_a_share_of_eight_blocks(layer: int | float, block: int):
    assert HiddenStates(layer).block(8) == block


@pytest.mark.parametrize("layer", [8, -1, 1.0, -0.5, -0.1])
def test_a_block_beyond_the_last_or_before_the_first_is_refused(layer: int | float):
    with pytest.raises(UsageRefused, match="block number from 0 to 7, or a share of the depth below 1.0"):
        HiddenStates(layer).block(8)
