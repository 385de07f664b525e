from typing import Literal

import pytest
import torch

from train.config import AEConfig, AutoencoderConfig, VAEConfig, VQVAEConfig
from train.models import build
from train.models.autoencoder import Autoencoder
from train.models.channels import contracted, expanded


@pytest.mark.parametrize(("stride", "features"), [(4, 64), (8, 128), (16, 256), (32, 512)])
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
@pytest.mark.parametrize("of", [AEConfig, VAEConfig, VQVAEConfig])
def test_any_number_of_channels_and_any_stride_give_back_the_shape_of_the_image(
    of: type[AutoencoderConfig], stride: Literal[4, 8, 16, 32], features: int, channels: int
) -> None:
    model = _model(of(stride=stride, latent_dim=12, decoder_width=8), channels)
    images = torch.randn(2, channels, 64, 96)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert (output.codes is None) == (of is not VQVAEConfig)
    if output.codes is not None:
        assert output.codes.shape == (2, 64 // stride, 96 // stride)
    assert model.embed(images).shape == (2, features)


@pytest.mark.parametrize("of", [AEConfig, VAEConfig, VQVAEConfig])
def test_every_weight_learns(of: type[AutoencoderConfig]) -> None:
    model = _model(of(latent_dim=6, decoder_width=8), 2)
    images = torch.randn(2, 2, 64, 64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # timm starts the last norm of a residual block at 0: what is before it learns from step 2 on
        optimiser.zero_grad()
        torch.stack(list(model(images).losses.values())).sum().backward()
        optimiser.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
def test_the_reconstruction_is_compared_with_the_image_as_configured(kind: Literal["mse", "l1", "huber"]) -> None:
    model = _model(AEConfig(reconstruction=kind, latent_dim=6, decoder_width=8), 2).eval()
    images = 3 * torch.randn(2, 2, 64, 64)
    output = model(images)
    apart = (output.reconstruction - images).abs()
    expected = {"mse": apart**2, "l1": apart, "huber": torch.where(apart < 1, apart**2 / 2, apart - 0.5)}[kind]
    assert list(output.losses) == ["reconstruction"]
    torch.testing.assert_close(output.losses["reconstruction"], expected.mean())


def test_the_divergence_of_a_vae_grows_to_its_weight_and_is_the_same_for_any_batch() -> None:
    config = VAEConfig(latent_dim=6, decoder_width=8, beta=0.3, beta_warmup_steps=10)
    model = _model(config, 2).eval()
    images = torch.randn(1, 2, 64, 64)
    kl = [float(model(images, step=step).losses["kl"].detach()) for step in (0, 5, 10, 500)]
    assert kl[0] == 0
    assert kl[1] == pytest.approx(0.5 * kl[2], rel=1e-5)
    assert kl[2] == kl[3] == float(model(images).losses["kl"].detach())
    for batch in (8, 64):
        many = model(images.expand(batch, -1, -1, -1))
        assert float(many.losses["kl"].detach()) == pytest.approx(kl[2], rel=1e-4)


def test_a_vae_draws_in_training_and_gives_its_means_otherwise() -> None:
    model = _model(VAEConfig(latent_dim=6, decoder_width=8), 2)
    images = torch.randn(2, 2, 64, 64)
    torch.manual_seed(0)
    one, other = model.gaussian(model.latent_map(images))[0], model.gaussian(model.latent_map(images))[0]
    assert not torch.equal(one, other)
    model.eval()
    means = model.latent_map(images).chunk(2, dim=1)[0]
    torch.testing.assert_close(model.gaussian(model.latent_map(images))[0], means)


@pytest.mark.parametrize("channels", range(1, 9))
def test_channels_as_images_of_their_own_come_back_as_they_were(channels: int) -> None:
    images = torch.randn(3, channels, 5, 7)
    apart = expanded(images)
    assert apart.shape == (3 * channels, 1, 5, 7)
    assert torch.equal(apart[channels - 1, 0], images[0, -1])
    assert torch.equal(contracted(apart, channels), images)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_an_expanding_model_takes_any_channels_and_treats_each_alike(channels: int) -> None:
    model = _model(VQVAEConfig(channels="expand", latent_dim=6, decoder_width=8), 2).eval()
    images = torch.randn(2, channels, 64, 64)
    output, found = model(images), model.embed(images)
    assert output.reconstruction.shape == images.shape
    assert output.codes is not None
    assert output.codes.shape == (2, channels * 4, 4)
    assert found.shape == (2, channels * 256)
    alone = [model.embed(images[:, [c]]) for c in range(channels)]
    torch.testing.assert_close(found, torch.cat(alone, dim=1))
    drawn = [model(images[:, [c]]).reconstruction for c in range(channels)]
    torch.testing.assert_close(output.reconstruction, torch.cat(drawn, dim=1))


def _model(config: AutoencoderConfig, channels: int) -> Autoencoder:
    model = build(config, channels)  # type: ignore[arg-type]  # it is one of them
    assert isinstance(model, Autoencoder)
    return model


def test_the_embedding_is_the_mean_of_the_features_that_the_latent_map_is_made_of() -> None:
    model = _model(VQVAEConfig(latent_dim=6, decoder_width=8), 2).eval()
    images = torch.randn(2, 2, 64, 64)
    features = model.features(images)
    torch.testing.assert_close(model.embed(images), features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.latent_map(images), model.to_latent(features))
