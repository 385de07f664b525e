"""The structural similarity index (Wang et al. 2004, equation 13).

    SSIM = (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂)),   C₁ = (0.01 L)²,  C₂ = (0.03 L)²

Means, variances and the covariance are those of an 11 x 11 Gaussian window with σ = 1.5, at every place where it fits.
Where we depart: L, the range of the numbers, is that of each channel of each image, since normalised pixels have none.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE, _SIGMA = 11, 1.5


def ssim(output: Tensor, images: Tensor) -> Tensor:
    """A scalar, the mean over images [B, C, Y, X], channels and places: 1 where both are alike.

    Raises:
        ValueError: images are smaller than the window.
    """
    if min(images.shape[2:]) < _SIDE:
        raise ValueError(f"SSIM needs images of {_SIDE} pixels or more, these have {tuple(images.shape[2:])}")
    x, y = (values.float().flatten(0, 1)[:, None] for values in (output, images))
    span = (y.amax(dim=(2, 3), keepdim=True) - y.amin(dim=(2, 3), keepdim=True)).clamp_min(1e-6)
    c1, c2 = (0.01 * span).square(), (0.03 * span).square()
    mean_x, mean_y, squares_x, squares_y, products = _smooth(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    var_x, var_y, covariance = squares_x - mean_x**2, squares_y - mean_y**2, products - mean_x * mean_y
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (light * structure).mean()


def _smooth(x: Tensor) -> Tensor:
    """[N, 1, Y, X], by the window's two passes, without borders."""
    place = torch.arange(_SIDE, device=x.device) - _SIDE // 2
    weights = torch.exp(-(place**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).to(x.dtype)
    return F.conv2d(F.conv2d(x, weights[None, None, :, None]), weights[None, None, None, :])
