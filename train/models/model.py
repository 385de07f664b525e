"""What every model is to those that train and use it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor, nn


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        losses: each weighted, a scalar, a mean over images; their sum is what is minimised.
        reconstruction: [B, C, Y, X] float32.
        embedding: [B, F] float32, without gradients; of an MAE, of the patches that are seen.
        codes: [B, y, x] int64; None where there are none.
        health: numbers that say how the model does, each a scalar.
    """

    losses: dict[str, Tensor]
    reconstruction: Tensor
    embedding: Tensor
    codes: Tensor | None = None
    health: dict[str, Tensor] = field(default_factory=dict)


class Model(nn.Module, ABC):
    """Images [B, C, Y, X] → losses in training, one vector per image when it is used."""

    @abstractmethod
    def forward(self, images: Tensor, step: int | None = None, groups: Tensor | None = None) -> Output:
        """One pass.

        Args:
            step: of the training, for what grows with it; None for the end of that.
            groups: [B] int64, the same for replicates; None where nothing is made of it.
        """

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """[B, F] float32."""


def own_part(images: int) -> tuple[int, slice]:
    """Images of the global batch over all ranks, and which of them are of this rank.

    What is random is drawn for the global batch, by a generator that is seeded alike on all ranks, and each rank takes
    its part: so two processes train as one does, and no two images share their draws.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return images * ranks, slice(images * rank, images * (rank + 1))
