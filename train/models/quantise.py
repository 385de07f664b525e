"""Vector quantisation with a moving-average codebook (van den Oord et al. 2017, appendix A.1).

    z_q = e_k,  k = argmin_j |z − e_j|²                 every position of the map has its own code
    N_k ← γ N_k + (1 − γ) n_k,   m_k ← γ m_k + (1 − γ) Σ z,   e_k = m_k / N_k    (N smoothed: + ε, renormalised)
    loss = β |z − sg(z_q)|²,  mean over positions and numbers, so independent of the batch

Where we depart: n_k and Σ z are summed over all ranks, so the codebook is the same on every rank and equal to that
of one process; and a code that is hardly used is placed anew on a vector of the global batch ("revived"), which is
also how the codebook begins.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class VectorQuantiser(nn.Module):
    """[B, D, y, x] → the same shape, each position replaced by its nearest code.

    The codebook lives in buffers: an optimiser must not touch it, and ZeRO-3 would lose writes to a parameter.
    """

    codebook: Tensor  # [K, D] float32
    uses: Tensor  # [K] moving average of vectors per step and code; all 0 before the first training step
    sums: Tensor  # [K, D] moving average of the sum of those vectors

    def __init__(self, codes: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.decay, self.revive_below, self.epsilon = decay, revive_below, 1e-5
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("uses", torch.zeros(codes))
        self.register_buffer("sums", torch.zeros(codes, dim))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises a map.

        Returns:
            quantised [B, D, y, x] with the gradient of z (straight through); codes [B, y, x] int64; the
            unweighted commitment loss, a scalar.
        """
        with torch.autocast(z.device.type, enabled=False):
            vectors = z.float().permute(0, 2, 3, 1).flatten(0, 2)
            if self.training and not self.uses.any():
                self._revive(vectors.detach(), torch.ones_like(self.uses, dtype=torch.bool), uses=1.0)
            codes = self._nearest(vectors.detach())
            quantised = self.codebook[codes]
            commitment = F.mse_loss(vectors, quantised)
            if self.training:
                self._learn(vectors.detach(), codes)
            quantised = vectors + (quantised - vectors).detach()
            batch, dim, height, width = z.shape
            return (
                quantised.view(batch, height, width, dim).permute(0, 3, 1, 2),
                codes.view(batch, height, width),
                commitment,
            )

    def _nearest(self, vectors: Tensor) -> Tensor:
        # |z − e|² without |z|², which is the same for all codes
        return (self.codebook.square().sum(1) - 2 * vectors @ self.codebook.T).argmin(1)

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        new = torch.zeros(len(self.codebook), 1 + vectors.shape[1], device=vectors.device)
        new.index_add_(0, codes, F.pad(vectors, (1, 0), value=1.0))
        _sum_over_ranks(new)
        self.uses.lerp_(new[:, 0], 1 - self.decay)
        self.sums.lerp_(new[:, 1:], 1 - self.decay)
        total, many = self.uses.sum(), len(self.uses)
        smoothed = (self.uses + self.epsilon) / (total + many * self.epsilon) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
        mean_use = float(total / many)
        dead = self.uses < self.revive_below * mean_use
        if dead.any():
            self._revive(vectors, dead, uses=mean_use)

    @torch.no_grad()
    def _revive(self, vectors: Tensor, dead: Tensor, uses: float) -> None:
        """Places dead codes on vectors of the global batch, picked by torch's generator (seeded alike on all ranks)."""
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        many = len(vectors)
        picked = torch.randint(many * ranks, (int(dead.sum()),))  # on the CPU: the same draw with any accelerator
        here = torch.div(picked, many, rounding_mode="floor") == rank
        fresh = torch.zeros(len(picked), vectors.shape[1], device=vectors.device)
        fresh[here] = vectors[picked[here] - rank * many]
        _sum_over_ranks(fresh)
        self.codebook[dead], self.uses[dead], self.sums[dead] = fresh, uses, fresh * uses


def _sum_over_ranks(tensor: Tensor) -> None:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
