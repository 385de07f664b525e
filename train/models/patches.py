"""Images as patches in a row, where they stand, and which of them are hidden."""

import functools

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


def hide(batch: int, tokens: int, ratio: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which tokens of each image are seen [B, S], and which are hidden [B, H]: their numbers, uniformly drawn."""
    total, own = own_part(batch)
    order = torch.rand(total, tokens)[own].argsort(dim=1).to(device)  # on the CPU: the same draw on any accelerator
    seen = min(max(1, round(tokens * (1 - ratio))), tokens - 1)
    return order[:, :seen], order[:, seen:]


def taken(tokens: Tensor, numbers: Tensor) -> Tensor:
    """[B, N, ...], [B, S] → [B, S, ...]."""
    return tokens[torch.arange(len(tokens), device=tokens.device)[:, None], numbers]
