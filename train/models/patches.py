"""Images as patches in a row, where they stand, and which of them are hidden."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from train.models.model import own_part

Size = int | torch.SymInt


def cut(images: Tensor, side: int) -> Tensor:
    """[B, C, Y, X] → [B, C, L, p, p], L = (Y / p) · (X / p) patches row by row."""
    batch, channels, height, width = images.shape
    grid = images.reshape(batch, channels, height // side, side, width // side, side)
    return grid.transpose(3, 4).reshape(batch, channels, -1, side, side)


def joined(patches: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `cut`: [B, C, L, p, p] → [B, C, Y, X]."""
    batch, channels, _, side, _ = patches.shape
    grid = patches.reshape(batch, channels, height // side, width // side, side, side)
    return grid.transpose(3, 4).reshape(batch, channels, height, width)


def positions(rows: Size, columns: Size, width: int) -> Tensor:
    """[rows · columns, width] sines and cosines of where each patch stands: half for y, half for x.

    Source: Vaswani et al. 2017, section 3.5, in two dimensions as He et al. 2022 have it. `width` is a multiple of 4.
    Computed once for each grid; in a graph that is traced for any size, in the graph.
    """
    if isinstance(rows, int) and isinstance(columns, int):
        return _known_positions(rows, columns, width)
    return _positions(rows, columns, width)


def _positions(rows: Size, columns: Size, width: int) -> Tensor:
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.flatten()[:, None] * frequency for place in (y, x)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


_known_positions = functools.lru_cache(maxsize=16)(_positions)


@dataclass(frozen=True)
class Hiding:
    """Tokens of each image in an order in which what is seen comes first, then what is hidden, then what is not there.

    Attributes:
        order: [B, N] their numbers.
        seen, hidden: how many of them the first `seen` columns at most, and all but the first `hidden`, are about.
        is_seen: [B, seen] bool, whether a token of the first columns is; None where all are.
        is_there: [B, N] bool, in this order; None where all are.
        is_hidden: [B, N − hidden] bool; None where all are.
    """

    order: Tensor
    seen: int
    hidden: int
    is_seen: Tensor | None = None
    is_there: Tensor | None = None
    is_hidden: Tensor | None = None


def hide(batch: int, tokens: int, ratio: float, device: torch.device, there: Tensor | None = None) -> Hiding:
    """Hides a share of each image's tokens, uniformly drawn.

    Args:
        there: [B, N] bool, which tokens an image has, two or more; None for all.
    """
    total, own = own_part(batch)
    drawn = torch.rand(total, tokens)[own]  # on the CPU: the same draw on any accelerator
    if there is None:
        seen = int(_seen(torch.tensor(tokens), ratio))
        return Hiding(drawn.argsort(dim=1).to(device), seen, seen)
    there = there.cpu()
    many = there.sum(dim=1, keepdim=True)
    seens, place = _seen(many, ratio), torch.arange(tokens)
    most, least = int(seens.max()), int(seens.min())
    is_seen, is_there = place < seens, place < many
    return Hiding(
        drawn.masked_fill(~there, 2).argsort(dim=1).to(device), most, least,
        is_seen[:, :most].to(device), is_there.to(device), (is_there & ~is_seen)[:, least:].to(device),
    )  # fmt: skip


def _seen(tokens: Tensor, ratio: float) -> Tensor:
    return (tokens.double() * (1 - ratio)).round().long().clamp(min=1).minimum(tokens - 1)


def taken(tokens: Tensor, numbers: Tensor) -> Tensor:
    """[B, N, ...], [B, S] → [B, S, ...]."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], numbers]
