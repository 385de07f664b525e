"""Models by configuration: one registry."""

from train.config import AEConfig, VQVAEConfig
from train.models.autoencoder import Autoencoder, Output

__all__ = ["Autoencoder", "Output", "build"]


def build(config: AEConfig | VQVAEConfig, channels: int) -> Autoencoder:
    """The model of a configuration for images of this many channels, with random weights."""
    return Autoencoder(config, channels)
