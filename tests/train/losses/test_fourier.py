import numpy as np
import pytest
import torch

from train.losses.fourier import spectrum_distance
from train.models import patches


@pytest.mark.parametrize("side", [8, 16, 32])
@pytest.mark.parametrize("agnostic", [False, True], ids=["all channels in a token", "one"])
def test_it_is_what_a_loop_over_patches_gives(side: int, agnostic: bool) -> None:
    rng = np.random.default_rng(0)
    image, other = rng.normal(size=(2, 2, 3, 64, 96))
    one, two = (patches.cut(torch.from_numpy(each), side) for each in (image, other))
    if agnostic:
        one, two = (each.flatten(1, 2)[:, :, None] for each in (one, two))
    else:
        one, two = one.transpose(1, 2), two.transpose(1, 2)
    distances = []
    for batch in range(2):
        for channel in range(3):
            for top in range(0, 64, side):
                for left in range(0, 96, side):
                    place = (batch, channel, slice(top, top + side), slice(left, left + side))
                    spectra = [np.abs(np.fft.fft2(each[place], norm="ortho")) for each in (image, other)]
                    distances.append(np.abs(spectra[0] - spectra[1]).mean())
    assert float(spectrum_distance(one, two).mean()) == pytest.approx(np.mean(distances), rel=1e-5)


def test_a_shifted_patch_has_the_same_spectrum_and_another_has_not() -> None:
    patch = torch.rand(1, 16, 16)
    assert float(spectrum_distance(patch.roll((3, 5), (1, 2)), patch)) < 1e-6
    assert float(spectrum_distance(torch.rand(1, 16, 16), patch)) > 0.05
