"""Vector quantisation (van den Oord et al. 2017): every position of a latent map has a code of its own.

    z_q = e_k,  k = argmin_j |z − e_j|²;   loss β |z − sg(z_q)|², a mean over positions and numbers, so independent of
                                           the batch;   gradients of z_q go to z as they are (straight through)

`ema`       N_k ← γ N_k + (1 − γ) n_k,   m_k ← γ m_k + (1 − γ) Σ z,   e_k = m_k / N_k      (appendix A.1; N smoothed)
`gradient`  a further loss |sg(z) − z_q|², by which the optimiser moves the codes
`residual`  K codebooks by moving averages, each for what those before it leave over: z_q = Σ e, and the losses add up
            (Zeghidour et al. 2021, section III.C)
`fsq`       no codebook: each of a few numbers is bounded and rounded to one of its levels (Mentzer et al. 2024)

Where we depart: n_k and Σ z are summed over all ranks, so that codebooks are the same on every rank and equal to that
of one process; and a code that is hardly used is placed anew on a vector of the global batch ("revived"), which is
also how a codebook begins.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from train.config import CodebookConfig, FSQConfig, GradientCodesConfig, QuantiserConfig

_EPSILON = 1e-5


@dataclass(frozen=True)
class Quantised:
    """A latent map in codes.

    Attributes:
        latent: [B, D, y, x] float32, with the gradient of what was quantised.
        codes: [B, K, y, x] int64, of K codebooks.
        losses: by name, each weighted, a scalar.
    """

    latent: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


def quantiser(config: QuantiserConfig, dim: int) -> nn.Module:
    """What makes a latent map [B, D, y, x] with D = `dim` `Quantised`."""
    return ScalarQuantiser(config, dim) if isinstance(config, FSQConfig) else VectorQuantiser(config, dim)


class VectorQuantiser(nn.Module):
    """Each position is replaced by its nearest code, or by the sum of those of several codebooks."""

    def __init__(self, config: CodebookConfig, dim: int) -> None:
        super().__init__()
        self.commitment = config.commitment
        of = GradientCodebook if isinstance(config, GradientCodesConfig) else MeansCodebook
        self.books = nn.ModuleList(
            of(config.codes, dim, config.decay, config.revive_below) for _ in range(config.books)
        )

    def forward(self, z: Tensor) -> Quantised:
        with torch.autocast(z.device.type, enabled=False):
            batch, dim, height, width = z.shape
            vectors = z.float().permute(0, 2, 3, 1).reshape(-1, dim)
            rest, codes, commitment, learning = vectors, [], [], []
            for book in self.books:
                nearest, chosen = book(rest.detach())
                codes.append(nearest)
                commitment.append(F.mse_loss(rest, chosen.detach()))
                if chosen.requires_grad:
                    learning.append(F.mse_loss(chosen, rest.detach()))
                rest = rest - chosen.detach()
            losses = {"commitment": self.commitment * torch.stack(commitment).sum()}
            if learning:
                losses["codebook"] = torch.stack(learning).sum()
            straight = vectors - rest.detach()  # z_q, with the gradient of z
            return Quantised(
                straight.view(batch, height, width, dim).permute(0, 3, 1, 2),
                torch.stack(codes, dim=-1).view(batch, height, width, -1).permute(0, 3, 1, 2),
                losses,
            )


class Codebook(nn.Module, ABC):
    """[N, D] vectors → the number of the nearest of `codes` codes [N], and those codes [N, D].

    What is not for an optimiser lives in buffers: ZeRO-3 would lose writes to a parameter.
    """

    placed: Tensor  # [codes, D] float32
    uses: Tensor  # [codes] moving average of vectors per step and code; all 0 before the first training step

    def __init__(self, codes: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__()
        self.decay, self.revive_below = decay, revive_below
        self.register_buffer("placed", torch.randn(codes, dim))
        self.register_buffer("uses", torch.zeros(codes))

    @property
    @abstractmethod
    def codes(self) -> Tensor:
        """[codes, D]."""

    @abstractmethod
    def _learn(self, vectors: Tensor, nearest: Tensor) -> None:
        """Takes in a batch: moves `uses`, and what else there is."""

    @abstractmethod
    def _place(self, which: Tensor, fresh: Tensor, uses: float) -> None:
        """Puts codes on these vectors, as if they had been used so much."""

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.uses.any():
            self._revive(vectors, torch.ones_like(self.uses, dtype=torch.bool), uses=1.0)
        codes = self.codes
        # |z − e|² without |z|², which is the same for all codes
        nearest = torch.addmm(codes.detach().square().sum(1), vectors, codes.detach().T, alpha=-2).argmin(1)
        chosen = F.embedding(nearest, codes)
        if self.training:
            self._learn(vectors, nearest)
            mean_use = float(self.uses.mean())
            dead = self.uses < self.revive_below * mean_use
            if dead.any():
                self._revive(vectors, dead, uses=mean_use)
        return nearest, chosen

    @torch.no_grad()
    def _revive(self, vectors: Tensor, dead: Tensor, uses: float) -> None:
        """Places dead codes on vectors of the global batch, picked by torch's generator (seeded alike on all ranks)."""
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        many = len(vectors)
        picked = torch.randint(many * ranks, (int(dead.sum()),))  # on the CPU: the same draw with any accelerator
        here = torch.div(picked, many, rounding_mode="floor") == rank
        fresh = torch.zeros(len(picked), vectors.shape[1], device=vectors.device)
        fresh[here] = vectors[picked[here] - rank * many]
        self._place(dead, _over_ranks(fresh), uses)


class MeansCodebook(Codebook):
    """Codes that follow the means of the vectors they stand for."""

    sums: Tensor  # [codes, D] moving average of the sum of those vectors

    def __init__(self, codes: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__(codes, dim, decay, revive_below)
        self.register_buffer("sums", torch.zeros(codes, dim))

    @property
    def codes(self) -> Tensor:
        return self.placed

    @torch.no_grad()
    def _learn(self, vectors: Tensor, nearest: Tensor) -> None:
        new = torch.zeros(len(self.placed), 1 + vectors.shape[1], device=vectors.device)
        _over_ranks(new.index_add_(0, nearest, F.pad(vectors, (1, 0), value=1.0)))
        self.uses.lerp_(new[:, 0], 1 - self.decay)
        self.sums.lerp_(new[:, 1:], 1 - self.decay)
        total = self.uses.sum()
        smoothed = (self.uses + _EPSILON) / (total + len(self.uses) * _EPSILON) * total
        torch.div(self.sums, smoothed[:, None], out=self.placed)

    def _place(self, which: Tensor, fresh: Tensor, uses: float) -> None:
        self.placed[which], self.uses[which], self.sums[which] = fresh, uses, fresh * uses


class GradientCodebook(Codebook):
    """Codes that an optimiser moves away from where they were placed."""

    def __init__(self, codes: int, dim: int, decay: float, revive_below: float) -> None:
        super().__init__(codes, dim, decay, revive_below)
        self.moved = nn.Parameter(torch.zeros(codes, dim))

    @property
    def codes(self) -> Tensor:
        return self.placed + self.moved

    @torch.no_grad()
    def _learn(self, vectors: Tensor, nearest: Tensor) -> None:
        used = torch.bincount(nearest, minlength=len(self.uses)).float()
        self.uses.lerp_(_over_ranks(used), 1 - self.decay)

    def _place(self, which: Tensor, fresh: Tensor, uses: float) -> None:
        self.placed[which], self.uses[which] = fresh - self.moved[which], uses


class ScalarQuantiser(nn.Module):
    """Finite scalar quantisation by vector-quantize-pytorch, with projections where D is not the number of levels."""

    def __init__(self, config: FSQConfig, dim: int) -> None:
        super().__init__()
        self.fsq = FSQ(list(config.levels), dim=dim)

    def forward(self, z: Tensor) -> Quantised:
        with torch.autocast(z.device.type, enabled=False):
            latent, codes = self.fsq(z.float())
            return Quantised(latent, codes[:, None].long(), {})


def _over_ranks(tensor: Tensor) -> Tensor:
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor
