"""What is done to a batch of normalised images on its device: intensity, optics, noise. The same code everywhere.

In the order of light: how much dye and lamp give (gain, offset), what the lens makes of it (blur, defocus), what the
detector adds (noise). So noise stays sharp. Gain and offset could as well come after the lens, whose kernels sum
to 1. A dropped channel is one that was never taken: all 0, without noise, as is one that a dataset does not have.

Gain is about 0 of the normalised image, its mean: a matter of contrast; offset is one of brightness. Noise does not
grow with the signal: for that of photons one would need the camera's photons per count and its black level, and the
image has its own already.

At an image's edge it goes on as in a mirror that stands on the outermost pixels (c b | a b c). A step that is off
costs nothing, and a sample that a step leaves alone keeps its bits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from bie_stream import noise
from bie_stream.augment import Doubles, Floats, Integers, View

_TRUNCATE = 4.0  # sigmas at which the Gaussian ends, as in SciPy

_AT_ONCE = 16  # channels filtered at once: oneDNN is several times slower where they do not fill its vectors


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


def apply_to(images: torch.Tensor, pieces: Sequence[tuple[Integers, View]]) -> None:
    """The same in place, for pieces of a batch, each of some rows of it, that together are all of it."""
    if len(pieces) == 1:
        apply(images, pieces[0][1])
        return
    for rows, view in pieces:
        at = torch.from_numpy(rows).to(images.device)
        images[at] = apply(images[at], view)


def scale(images: torch.Tensor, gain: Floats, offset: Floats) -> None:
    """gain · x + offset for each channel [B, C], in place."""
    by, plus = (torch.from_numpy(each).to(images.device)[:, :, None, None] for each in (gain, offset))
    images.mul_(by).add_(plus)


def blur(images: torch.Tensor, sigma: Floats) -> None:
    """Gaussian blur of each sample by its sigma [B] in pixels, in place."""

    def kernels(rows: Integers, extent: int) -> tuple[Doubles, ...]:
        taps = gaussian(sigma[rows], extent)
        return taps[:, :, None], taps[:, None, :]

    _filter(images, _gaussian_extent(sigma), kernels)


def defocus(images: torch.Tensor, radius: Floats) -> None:
    """Each sample's points become discs of its radius [B] in pixels, in place."""
    extent = np.ceil(radius - 0.5).clip(0).astype(np.int64)
    _filter(images, extent, lambda rows, extent: (disc(radius[rows], extent),))


def gaussian(sigma: Floats, extent: int) -> Doubles:
    """[N, 2 extent + 1] weights exp(−x² / 2σ²), cut at _TRUNCATE · σ, of sum 1: those of scipy.ndimage."""
    offset = np.arange(-extent, extent + 1)
    weights = np.exp(-0.5 * (offset / sigma.astype(np.float64)[:, None]) ** 2)
    weights *= np.abs(offset) <= _gaussian_extent(sigma)[:, None]
    return weights / weights.sum(axis=1, keepdims=True)


def _gaussian_extent(sigma: Floats) -> Integers:
    return (_TRUNCATE * sigma.astype(np.float64) + 0.5).astype(np.int64)


def disc(radius: Floats, extent: int) -> Doubles:
    """[N, 2 extent + 1, 2 extent + 1] weights of sum 1: 1 within the radius, falling to 0 over one pixel about it."""
    offset = np.arange(-extent, extent + 1)
    weights = (radius.astype(np.float64)[:, None, None] + 0.5 - np.hypot(offset[:, None], offset)).clip(0, 1)
    return weights / weights.sum(axis=(1, 2), keepdims=True)


def _filter(images: torch.Tensor, extent: Integers, kernels: Callable[[Integers, int], tuple[Doubles, ...]]) -> None:
    """Convolves the channels of each sample in place, a few of about the same extent [B] at a time; of 0 not at all.

    Args:
        kernels: one after the other, each [N, odd, odd], for N rows and an extent that is enough for all of them.
    """
    planes, channels = images.view(-1, *images.shape[2:]), images.shape[1]
    order = np.argsort(extent, kind="stable")
    wanted = (order[extent[order] > 0][:, None] * channels + np.arange(channels)).ravel()
    for i in range(0, len(wanted), _AT_ONCE):
        few = wanted[i : i + _AT_ONCE]
        rows = few // channels
        widest = min(int(extent[rows].max()), *(side - 1 for side in planes.shape[1:]))  # a mirror shows no more
        at = torch.from_numpy(few).to(images.device)
        planes[at] = _convolved(planes[at], kernels(rows, widest))


def _convolved(planes: torch.Tensor, kernels: tuple[Doubles, ...]) -> torch.Tensor:
    """Planes [N, Y, X], each under its own kernels [N, odd, odd], one after the other."""
    y, x = (sum(kernel.shape[axis] // 2 for kernel in kernels) for axis in (1, 2))
    padded = F.pad(planes[None], (x, x, y, y), mode="reflect")
    for kernel in kernels:
        weight = torch.from_numpy(kernel.astype(np.float32)).to(planes.device)[:, None]
        padded = F.conv2d(padded, weight, groups=len(planes))
    return padded[0]
