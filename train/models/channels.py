"""Channels as images of their own: the one and its exact inverse."""

from torch import Tensor


def expanded(images: Tensor) -> Tensor:
    """[B, C, ...] → [B · C, 1, ...]: the channels of an image follow each other."""
    return images.flatten(0, 1)[:, None]


def contracted(images: Tensor, channels: int) -> Tensor:
    """[B · C, 1, ...] → [B, C, ...]."""
    return images[:, 0].reshape(-1, channels, *images.shape[2:])
