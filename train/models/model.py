"""What every model is to those that train and use it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor, nn

from train.config import LAST, Readout


@dataclass
class Output:
    """What a forward pass gives.

    Attributes:
        losses: each weighted, a scalar, a mean over images; their sum is what is minimised.
        embedding: [B, F] float32, without gradients; of an MAE, of the patches that are seen.
        draw: gives the reconstruction [B, C, Y, X] float32; of an MAE it is made only when it is asked for.
        codes: [B, K, y, x] int64, of K codebooks; None where there are none.
        health: numbers that say how the model does, each a scalar.
    """

    losses: dict[str, Tensor]
    embedding: Tensor
    draw: Callable[[], Tensor]
    codes: Tensor | None = None
    health: dict[str, Tensor] = field(default_factory=dict)

    @property
    def reconstruction(self) -> Tensor:
        return self.draw()


class Model(nn.Module, ABC):
    """Images [B, C, Y, X] → losses in training, one vector per image when it is used."""

    @abstractmethod
    def forward(
        self, images: Tensor, step: int | None = None, groups: Tensor | None = None, present: Tensor | None = None
    ) -> Output:
        """One pass.

        Args:
            step: of the training, for what grows with it; None for the end of that.
            groups: [B] int64, the same for replicates; None where nothing is made of it.
            present: [B, C] bool, which channels an image has, for models of any channels; None for all.
        """

    @abstractmethod
    def embed(self, images: Tensor, readout: Readout = LAST, present: Tensor | None = None) -> Tensor:
        """[B, F] float32."""

    @property
    @abstractmethod
    def layers(self) -> int:
        """How many there are for a `Readout`."""

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no weights, by name: timm's optimisers leave their size alone."""
        return {
            name for name, _ in self.named_parameters() if name.rpartition(".")[2] in ("moved", "hidden", "channel")
        }


def own_part(images: int) -> tuple[int, slice]:
    """Images of the global batch over all ranks, and which of them are of this rank.

    What is random is drawn for the global batch, by a generator that is seeded alike on all ranks, and each rank takes
    its part: so two processes train as one does, and no two images share their draws.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return images * ranks, slice(images * rank, images * (rank + 1))
