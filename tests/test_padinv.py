"""PadInv's encoder hands over the latents and maps, in number and size, that the published generators take.

The encoder itself is not here. For ``pad_layer_num`` = p it makes maps of side 2^(p+1) + 2 at the indices 0 and 1, 3,
... 2p - 1 of a list as long as the latents; published: p = 4, side 34, 18 latents for 1024 pixels.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from posgan_fast.models import Generator

INDICES = (0, 1, 3, 5, 7)
NEEDED = {0: 4, 1: 6, 3: 10, 5: 18, 7: 34}  # sides of what is read: the constant, and rings around 4, 8, 16, 32
OFFSETS = {0: 15, 1: 14, 3: 12, 5: 8, 7: 0}  # of their centre crops in 34 x 34
SIDE, N = 34, 2


@pytest.fixture(scope="module")
def published():
    """The generator of 1024 pixels in its full width, and sizes alone: those of maps [N, 512, side, side] by index to
    the image's."""
    network = Generator(1024)

    def run(sides: dict[int, int]) -> torch.Size:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            maps = [torch.empty(N, 512, sides[i], sides[i]) if i in sides else None for i in range(18)]
            return network.synthesis(torch.empty(N, 18, 512), maps).shape

    return network, run


def test_latents_and_maps_of_the_encoder(published):
    network, run = published
    assert network.num_ws == network.synthesis.num_ws == 18 and network.w_dim == 512
    assert run(dict.fromkeys(INDICES, SIDE)) == (N, 3, 1024, 1024)


@pytest.mark.parametrize("index", INDICES)
def test_the_smallest_map_of_each_index(published, index):
    _, run = published
    assert run({index: NEEDED[index]}) == (N, 3, 1024, 1024)
    with pytest.raises(ValueError, match=rf"^pad_maps\[{index}\]: expected"):
        run({index: NEEDED[index] - 1})


@pytest.mark.parametrize("layers, side", [(1, 6), (2, 10), (3, 18), (4, 34), (5, 66)])
def test_the_side_that_the_encoder_chooses(published, layers, side):
    """Just enough for the last of its layers."""
    _, run = published
    indices = [0, *range(1, 2 * layers, 2)]
    assert side == 2 ** (layers + 1) + 2
    assert run(dict.fromkeys(indices, side)) == (N, 3, 1024, 1024)
    for short in (side - 1, 2**layers + 2):
        with pytest.raises(ValueError, match=rf"^pad_maps\[{indices[-1]}\]: expected"):
            run(dict.fromkeys(indices, short))


def test_centre_crops_of_the_maps():
    """Each index reads its own crop of 34 x 34, at the offset rounded down, the first all of it and the others a ring;
    whatever else a map holds, and its further rows and columns, do not count."""
    torch.manual_seed(0)
    network = Generator(64, w_dim=12, channel_max=8, mapping_layers=1).double()
    rand = torch.Generator().manual_seed(1)
    ws = torch.randn(N, network.num_ws, 12, generator=rand, dtype=torch.float64)
    maps = {i: torch.randn(N, 8, SIDE, SIDE, generator=rand, dtype=torch.float64) for i in INDICES}

    def image(maps: dict[int, torch.Tensor]) -> torch.Tensor:
        return network.synthesis(ws, [maps.get(i) for i in range(network.num_ws)])

    expected = image(maps)
    for index in INDICES:
        inside = slice(OFFSETS[index], OFFSETS[index] + NEEDED[index])
        crop = maps[index][:, :, inside, inside]
        assert crop.shape[2:] == (NEEDED[index], NEEDED[index])
        assert torch.equal(image({**maps, index: crop}), expected)
        larger = torch.nn.functional.pad(crop, (3, 4, 2, 3), value=5.0)  # off the centre by half a pixel
        assert torch.equal(image({**maps, index: larger}), expected)
        other = {**maps, index: maps[index].clone()}
        other[index][:, :, inside.start, inside.stop - 1] += 1  # a corner
        assert not torch.equal(image(other), expected)
