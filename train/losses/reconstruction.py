"""How far a reconstruction is from its image."""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Distance = Literal["mse", "l1", "huber"]


def reconstruction(kind: Distance, output: Tensor, images: Tensor) -> Tensor:
    """Mean squared, mean absolute or Huber's error (δ = 1): mean over batch, channels and pixels, in float32. A scalar.

    Huber's is ½ d² for |d| < 1 and |d| − ½ beyond (Huber 1964): like the squares, but a speck does not outweigh a cell.
    """
    distances: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
        "mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss,
    }  # fmt: skip
    return distances[kind](output.float(), images.float())
