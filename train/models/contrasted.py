"""What the contrast of a configuration is made of: embeddings and their groups, of images or of their channels."""

import torch
from torch import Tensor

from train.config import ContrastConfig
from train.losses.contrast import contrast
from train.models.model import own_part


def contrasted(
    config: ContrastConfig, embedding: Tensor, of_channels: Tensor | None, groups: Tensor | None,
    present: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The weighted loss, a scalar.

    Args:
        embedding: [B, F] of images.
        of_channels: [B, C, F] of their channels; None where a model has none, which its configuration then refuses.
        groups: [B] of replicates.
        present: [B, C] bool, the channels that there are; None for all.
    """
    if config.of == "channels":
        assert of_channels is not None, "the configuration refuses models without channels of their own"
        images, channels = of_channels.shape[:2]
        total, own = own_part(images)
        numbers = torch.arange(total, device=embedding.device)[own][:, None].repeat(1, channels)
        if present is not None:  # what is not there is in no group with anything
            alone = -1 - torch.arange(total * channels, device=embedding.device).reshape(total, channels)[own]
            numbers = torch.where(present, numbers, alone)
        groups, embedding = numbers.flatten(), of_channels.flatten(0, 1)
    assert groups is not None, "the loop gives those of replicates"
    return config.weight * contrast(embedding, groups, config.similarity, config.temperature)
