"""How far a reconstruction is from its image."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor


def reconstruction(kind: Literal["mse", "l1"], output: Tensor, images: Tensor) -> Tensor:
    """Mean squared or mean absolute error: mean over batch, channels and pixels, in float32. A scalar."""
    distance = F.mse_loss if kind == "mse" else F.l1_loss
    return distance(output.float(), images.float())
