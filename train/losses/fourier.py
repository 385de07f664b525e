"""How unlike the spatial frequencies of patches are, whatever their phases.

    L = mean | |F(x̂)| − |F(x)| |,   F the orthonormal two-dimensional DFT of each channel of each patch

Source: the "Fourier domain" term of Kraus et al., CVPR 2024, section 3.3. Where we depart: the DFT is over explicit
patches for any patch size and number of channels, and orthonormal, so that a weight means the same at every size.
"""

import torch
from torch import Tensor


def spectrum_distance(output: Tensor, target: Tensor) -> Tensor:
    """[...]: the mean over each patch; patches [..., p, p]."""
    spectra = (torch.fft.fft2(patches.float(), norm="ortho").abs() for patches in (output, target))
    ours, theirs = spectra
    return (ours - theirs).abs().mean(dim=(-2, -1))
