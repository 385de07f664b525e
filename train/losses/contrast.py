"""Embeddings of one group near each other, far from those of others: channels of a field, replicates of a treatment.

    L = − mean over i and p, of one group, of  log  exp(s_ip / τ) / (exp(s_ip / τ) + Σ_n exp(s_in / τ))

NT-Xent of Chen et al. 2020, equation 1, for groups of any size. Where we depart: n goes over other groups only, so
that no two of one group push each other away. s is the cosine, or minus the squared Euclidean distance. An embedding
that is alone in its group has nothing to be near, and counts as one of the others only.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

Similarity = Literal["cosine", "euclidean"]


def contrast(embeddings: Tensor, groups: Tensor, similarity: Similarity, temperature: float) -> Tensor:
    """A scalar: the mean over this rank's embeddings and those of their groups on all ranks; 0 where no group has two.

    Args:
        embeddings: [N, F].
        groups: [N] int64, the same number on all ranks for the same group.
        temperature: τ.
    """
    embeddings = embeddings.float()
    every, of = _gathered(embeddings), _gathered(groups)
    first = len(embeddings) * (dist.get_rank() if len(every) > len(embeddings) else 0)
    alike = _similarity(embeddings, every, similarity) / temperature
    same = groups[:, None] == of
    itself = torch.zeros_like(same)
    itself[torch.arange(len(groups)), first + torch.arange(len(groups))] = True
    nothing = torch.finfo(alike.dtype).min / 2  # where there are no others, infinity would have no gradient
    others = alike.masked_fill(same, nothing).logsumexp(dim=1, keepdim=True)
    pairs = same & ~itself
    losses = torch.logaddexp(alike, others) - alike
    # The mean over all pairs of all ranks: ranks have different numbers of them, and their losses are averaged.
    count = _gathered(pairs.sum().reshape(1)).float().mean()
    return losses.masked_fill(~pairs, 0).sum() / count.clamp(min=1)


def _similarity(one: Tensor, other: Tensor, kind: Similarity) -> Tensor:
    if kind == "cosine":
        return F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    return -torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square()


def _gathered(values: Tensor) -> Tensor:
    """[N, ...] of all ranks, with gradients to each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    if values.is_floating_point():
        return torch.cat(all_gather(values))  # type: ignore[no-untyped-call]  # torch has no type for it
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)
