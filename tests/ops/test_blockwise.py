"""Block-diagonal maps joined into wider blocks."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from openxlstm.ops.plain.blockwise import TILE, tiles


@given(num_blocks=st.integers(1, 100), side=st.integers(1, 70))
def test_tiles_are_the_same_map_in_wider_blocks(num_blocks: int, side: int) -> None:
    weight = torch.randn(num_blocks, side, side)
    wide = tiles(weight)
    assert torch.equal(torch.block_diag(*wide), torch.block_diag(*weight))
    assert wide.shape[1] == wide.shape[2]
    assert wide.shape[1] <= max(TILE, side)


def test_tiles_of_small_blocks_are_wide() -> None:
    """What tiles are for: 32 blocks of 4 × 4 are 2 products, not 32."""
    assert tiles(torch.randn(32, 4, 4)).shape == (2, 64, 64)
