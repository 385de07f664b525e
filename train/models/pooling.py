"""Features at positions → one vector."""

import torch
from torch import Tensor

from train.config import Pooling


def pooled(features: Tensor, pooling: Pooling, there: Tensor | None = None) -> Tensor:
    """[B, P, F] features at P positions → [B, F], float32; [B, 2 F] for `mean+std`.

    Args:
        there: [B, P] bool, the positions that count, at least one of each image; None for all.
    """
    features = features.float()
    if pooling == "max":
        return (features if there is None else features.masked_fill(~there[..., None], -torch.inf)).amax(dim=1)
    if there is None:
        mean = features.mean(dim=1)
    else:
        share = there / there.sum(dim=1, keepdim=True)
        mean = (features * share[..., None]).sum(dim=1)
    if pooling == "mean":
        return mean
    apart = (features - mean[:, None]).square()
    variance = apart.mean(dim=1) if there is None else (apart * share[..., None]).sum(dim=1)
    std = variance.sqrt()
    return std if pooling == "std" else torch.cat([mean, std], dim=1)
