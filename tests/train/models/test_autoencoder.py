from typing import Literal

import pytest
import torch

from train.config import AEConfig, VQVAEConfig
from train.models import build


@pytest.mark.parametrize(("stride", "features"), [(4, 64), (8, 128), (16, 256), (32, 512)])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_and_any_stride_give_back_the_shape_of_the_image(
    stride: Literal[4, 8, 16, 32], features: int, channels: int
) -> None:
    model = build(VQVAEConfig(stride=stride, latent_dim=12, decoder_width=8, codes=16), channels)
    images = torch.randn(2, channels, 64, 96)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert output.codes is not None
    assert output.codes.shape == (2, 64 // stride, 96 // stride)
    assert model.embed(images).shape == (2, features)


def test_a_plain_autoencoder_has_no_codes_and_every_weight_learns() -> None:
    model = build(AEConfig(latent_dim=6, decoder_width=8), 2)
    images = torch.randn(2, 2, 64, 64)
    output = model(images)
    assert output.codes is None
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # timm starts the last norm of a residual block at 0: what is before it learns from step 2 on
        optimiser.zero_grad()
        (model(images).reconstruction - images).square().mean().backward()
        optimiser.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_the_embedding_is_the_mean_of_the_features_that_the_latent_map_is_made_of() -> None:
    model = build(VQVAEConfig(latent_dim=6, decoder_width=8), 2).eval()
    images = torch.randn(2, 2, 64, 64)
    features = model.features(images)
    torch.testing.assert_close(model.embed(images), features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.latent_map(images), model.to_latent(features))
