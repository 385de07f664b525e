"""What is done to a batch of normalised images on its device: intensity, optics, noise. The same code everywhere.

In the order of light: how much dye and lamp give (gain, offset), what the lens makes of it (blur, defocus), what the
detector adds (noise). So noise stays sharp. Gain and offset could as well come after the lens, whose kernels sum
to 1. A dropped channel is one that was never taken: all 0, without noise.

Gain is about 0 of the normalised image, its mean: a matter of contrast; offset is one of brightness. Noise does not
grow with the signal: for that of photons one would need the camera's photons per count and its black level, and the
image has its own already.

At an image's edge it goes on as in a mirror that stands on the outermost pixels (c b | a b c). A step that is off
costs nothing, and a sample that a step leaves alone keeps its bits.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional as F

from bie_stream import noise
from bie_stream.augment import Doubles, Floats, Integers, View

_TRUNCATE = 4.0  # sigmas at which the Gaussian ends, as in SciPy

_AT_ONCE = 2**20  # pixels that are filtered at once: what a core's cache holds


def apply(images: torch.Tensor, view: View) -> torch.Tensor:
    """Images [B, C, Y, X] float32 as the view wants them; done in place, nothing is left of those given."""
    if view.gain is not None and view.offset is not None:
        scale(images, view.gain, view.offset)
    if view.sigma is not None:
        blur(images, view.sigma)
    if view.radius is not None:
        defocus(images, view.radius)
    if view.noise is not None:
        noise.add(images, view.noise)
    return images


def scale(images: torch.Tensor, gain: Floats, offset: Floats) -> None:
    """gain · x + offset for each channel [B, C], in place."""
    by, plus = (torch.from_numpy(each).to(images.device)[:, :, None, None] for each in (gain, offset))
    images.mul_(by).add_(plus)


def blur(images: torch.Tensor, sigma: Floats) -> None:
    """Gaussian blur of each sample by its sigma [B] in pixels, in place."""
    extent = (_TRUNCATE * sigma + 0.5).astype(np.int64)
    for rows, radius in _alike(extent, images):
        taps = gaussian(sigma[rows], radius)
        _filter(images, rows, taps[:, :, None], taps[:, None, :])


def defocus(images: torch.Tensor, radius: Floats) -> None:
    """Each sample's points become discs of its radius [B] in pixels, in place."""
    extent = np.ceil(radius - 0.5).clip(0).astype(np.int64)
    for rows, widest in _alike(extent, images):
        _filter(images, rows, disc(radius[rows], widest))


def gaussian(sigma: Floats, extent: int) -> Doubles:
    """[N, 2 extent + 1] weights exp(−x² / 2σ²), cut at _TRUNCATE · σ, of sum 1: those of scipy.ndimage."""
    offset = np.arange(-extent, extent + 1)
    spread = sigma.astype(np.float64)[:, None]
    weights = np.exp(-0.5 * (offset / spread) ** 2) * (np.abs(offset) <= (_TRUNCATE * spread + 0.5).astype(np.int64))
    return weights / weights.sum(axis=1, keepdims=True)


def disc(radius: Floats, extent: int) -> Doubles:
    """[N, 2 extent + 1, 2 extent + 1] weights of sum 1: 1 within the radius, falling to 0 over one pixel about it."""
    offset = np.arange(-extent, extent + 1)
    weights = (radius.astype(np.float64)[:, None, None] + 0.5 - np.hypot(offset[:, None], offset)).clip(0, 1)
    return weights / weights.sum(axis=(1, 2), keepdims=True)


def _alike(extent: Integers, images: torch.Tensor) -> Iterator[tuple[Integers, int]]:
    """Rows whose kernels are about as large, a few at a time, and the extent of the largest; rows of extent 0 never."""
    order = np.argsort(extent, kind="stable")
    order = order[extent[order] > 0]
    step = max(1, _AT_ONCE // images[0].numel())
    most = min(images.shape[2:]) - 1  # a mirror shows no more than the image
    for i in range(0, len(order), step):
        rows = order[i : i + step]
        yield rows, min(int(extent[rows].max()), most)


def _filter(images: torch.Tensor, rows: Integers, *kernels: Doubles) -> None:
    """Replaces these rows by what they give under one kernel after the other, each [N, odd, odd]."""
    at = torch.from_numpy(rows).to(images.device)
    some = images[at]
    y, x = (sum(kernel.shape[axis] // 2 for kernel in kernels) for axis in (1, 2))
    planes = F.pad(some, (x, x, y, y), mode="reflect").flatten(0, 1)[None]
    for kernel in kernels:
        weight = torch.from_numpy(kernel.astype(np.float32)).to(images.device)
        planes = F.conv2d(planes, weight.repeat_interleave(images.shape[1], 0)[:, None], groups=planes.shape[1])
    images[at] = planes.view_as(some)
