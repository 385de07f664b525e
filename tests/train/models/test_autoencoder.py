from collections import Counter
from typing import Literal

import pytest
import torch

from train.config import (
    AEConfig,
    ContrastConfig,
    EMACodesConfig,
    FSQConfig,
    GradientCodesConfig,
    LatentConfig,
    Readout,
    ResidualCodesConfig,
    VAEConfig,
    VQVAEConfig,
    ZalandoConfig,
)  # fmt: skip
from train.losses.ssim import ssim
from train.models import build
from train.models.autoencoder import Autoencoder
from train.models.channels import contracted, expanded

_BLOCKS = ("BasicBlock", "Bottleneck")


@pytest.mark.parametrize(("stride", "features"), [(4, 64), (8, 128), (16, 256), (32, 512)])
@pytest.mark.parametrize("channels", [1, 2, 5, 8])
@pytest.mark.parametrize("of", [AEConfig, VAEConfig, VQVAEConfig])
def test_any_number_of_channels_and_any_stride_give_back_the_shape_of_the_image(
    of: type[AEConfig | VAEConfig | VQVAEConfig], stride: Literal[4, 8, 16, 32], features: int, channels: int
) -> None:
    model = _model(of(stride=stride, latent_dim=12, decoder_width=8), channels)
    images = torch.randn(2, channels, 64, 96)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert (output.codes is None) == (of is not VQVAEConfig)
    if output.codes is not None:
        assert output.codes.shape == (2, 1, 64 // stride, 96 // stride)
    assert model.embed(images).shape == (2, features)


EACH: list[LatentConfig] = [
    AEConfig(latent_dim=6, decoder_width=8),
    AEConfig(latent_dim=6, decoder="mirror", ssim=0.3, fourier=0.2),
    AEConfig(latent_dim=6, decoder="mirror", encoder="resnet50"),
    AEConfig(latent_dim=6, decoder="mirror", stem="small", stride=2),
    AEConfig(latent_dim=6, decoder_width=8, stem="small", stride=8, channels="expand"),
    VAEConfig(latent_dim=6, decoder_width=8),
    *(
        VQVAEConfig(latent_dim=6, decoder_width=8, quantiser=quantiser)
        for quantiser in (EMACodesConfig(), GradientCodesConfig(), ResidualCodesConfig(), FSQConfig(levels=(5, 5)))
    ),
    ZalandoConfig(latent_dim=6, num_hiddens=16),
]
of_each = pytest.mark.parametrize("config", EACH, ids=lambda config: f"{config.kind}-{EACH.index(config)}")


@of_each
def test_every_weight_learns(config: LatentConfig) -> None:
    model = _model(config, 2)
    images = torch.randn(4, 2, 64, 64)
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
    assert output.codes.shape == (2, 1, channels * 4, 4)
    assert found.shape == (2, channels * 256)
    alone = [model.embed(images[:, [c]]) for c in range(channels)]
    torch.testing.assert_close(found, torch.cat(alone, dim=1))
    drawn = [model(images[:, [c]]).reconstruction for c in range(channels)]
    torch.testing.assert_close(output.reconstruction, torch.cat(drawn, dim=1))


def _model(config: LatentConfig, channels: int) -> Autoencoder:
    model = build(config, channels)
    assert isinstance(model, Autoencoder)
    return model


def test_the_embedding_is_the_mean_of_the_features_that_the_latent_map_is_made_of() -> None:
    model = _model(VQVAEConfig(latent_dim=6, decoder_width=8), 2).eval()
    images = torch.randn(2, 2, 64, 64)
    features = model.features(images)
    torch.testing.assert_close(model.embed(images), features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.latent_map(images), model.to_latent(features))


@of_each
@torch.no_grad()
def test_images_that_differ_have_embeddings_that_do(config: LatentConfig) -> None:
    torch.manual_seed(0)
    found = _model(config, 2).eval().embed(torch.randn(20, 2, 32, 32))
    assert len(found.round(decimals=5).unique(dim=0)) == 20


@pytest.mark.parametrize(("encoder", "features"), [
    ("resnet18", 256), ("resnet34", 256), ("resnet50", 1024), ("resnet101", 1024), ("resnet152", 1024),
])  # fmt: skip
@pytest.mark.parametrize("stem", ["standard", "small"])
def test_a_mirrored_decoder_has_the_blocks_of_its_encoder(
    encoder: str, features: int, stem: Literal["standard", "small"]
) -> None:
    stride: Literal[4, 16] = 16 if stem == "standard" else 4
    with torch.device("meta"):
        model = _model(AEConfig(encoder=encoder, decoder="mirror", stem=stem, stride=stride), 3)
        output = model(torch.empty(2, 3, 64, 64))
    assert output.reconstruction.shape == (2, 3, 64, 64)
    assert output.embedding.shape == (2, features)
    blocks = [
        Counter(type(module).__name__ for module in part.modules() if type(module).__name__ in _BLOCKS)
        for part in (model.encoder, model.decoder)
    ]
    assert blocks[0] == blocks[1]
    assert blocks[0].total() >= 6
    weights = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.decoder)]
    assert 0.8 < weights[1] / weights[0] < 2.0


def test_a_small_stem_keeps_the_resolution_and_the_rest_of_the_network() -> None:
    small, standard = _model(AEConfig(stem="small", stride=2), 2), _model(AEConfig(stride=8), 2)
    images = torch.randn(2, 2, 32, 32)
    assert [tuple(each.shape[1:]) for each in small.encoder(images)] == [(64, 32, 32), (128, 16, 16)]
    assert [tuple(each.shape[1:]) for each in standard.encoder(images)] == [(64, 16, 16), (64, 8, 8), (128, 4, 4)]
    own = dict(small.encoder.named_parameters())
    differing = [n for n, value in standard.encoder.named_parameters() if own[n].shape != value.shape]
    assert differing == ["conv1.weight"]


def test_the_small_vqvae_is_that_of_the_paper() -> None:
    config = ZalandoConfig(num_hiddens=128, num_residual_layers=2, num_residual_hiddens=32, latent_dim=64)
    model = _model(config, 3)
    count = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in ("encoder", "decoder")}
    block = 9 * 128 * 32 + 32 * 128
    assert count["encoder"] == (16 * 3 * 64 + 64) + (16 * 64 * 128 + 128) + (9 * 128 * 128 + 128) + 2 * block
    assert count["decoder"] == (9 * 64 * 128 + 128) + 2 * block + (16 * 128 * 64 + 64) + (16 * 64 * 3 + 3)
    output = model(torch.randn(2, 3, 32, 32))
    assert output.codes is not None
    assert output.codes.shape == (2, 1, 8, 8)


def test_parts_of_the_reconstruction_loss_have_their_shares() -> None:
    config = AEConfig(latent_dim=6, decoder_width=8, reconstruction="l1", ssim=0.25, fourier=0.35)
    model = _model(config, 2).eval()
    images = torch.randn(3, 2, 64, 64)
    output = model(images)
    drawn = output.reconstruction
    spectra = [torch.fft.fft2(each, norm="ortho").abs() for each in (drawn, images)]
    expected = {
        "reconstruction": 0.4 * (drawn - images).abs().mean(),
        "ssim": 0.25 * (1 - ssim(drawn, images)),
        "fourier": 0.35 * (spectra[0] - spectra[1]).abs().mean(),
    }
    assert list(output.losses) == list(expected)
    for name, loss in output.losses.items():
        torch.testing.assert_close(loss.detach(), expected[name])


def test_any_stage_can_be_read_out_by_any_pooling() -> None:
    model = _model(AEConfig(latent_dim=6, decoder_width=8), 2).eval()
    images = torch.randn(3, 2, 64, 64)
    assert model.layers == 4
    maps = model.encoder(images)
    for layer in range(1, 5):
        expected = maps[layer - 1].mean(dim=(2, 3))
        torch.testing.assert_close(model.embed(images, Readout(layer=layer)), expected)
    both = model.embed(images, Readout(layer=2, pooling="mean+std"))
    torch.testing.assert_close(both[:, 64:], maps[1].std(dim=(2, 3), correction=0))
    torch.testing.assert_close(model.embed(images, Readout(layer=None, pooling="max")), maps[3].amax(dim=(2, 3)))


@pytest.mark.parametrize("of", ["channels", "replicates"])
def test_contrast_draws_together_what_belongs_together(of: Literal["channels", "replicates"]) -> None:
    torch.manual_seed(0)
    label = "well" if of == "replicates" else None
    contrast = ContrastConfig(of=of, label=label, weight=1.0)
    model = _model(AEConfig(latent_dim=6, decoder_width=8, channels="expand", contrast=contrast), 2)
    images, groups = torch.randn(6, 2, 32, 32), torch.tensor([0, 0, 1, 1, 2, 2])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    found = []
    for _ in range(12):
        loss = model(images, groups=groups).losses["contrast"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.5 * found[0]


@of_each
@pytest.mark.parametrize(("channels", "side"), [*((channels, 64) for channels in range(1, 9)), (3, 128), (2, 256)])
@torch.no_grad()
def test_shapes_of_one_to_eight_channels_at_64_to_256_pixels(config: LatentConfig, channels: int, side: int) -> None:
    model = _model(config, channels).eval()
    images = torch.randn(2, channels, side, side)
    output, embedding = model(images), model.embed(images)
    assert output.reconstruction.shape == images.shape
    assert embedding.shape == (2, model.to_latent.in_channels * (channels if config.channels == "expand" else 1))
    if isinstance(config, VQVAEConfig | ZalandoConfig):
        assert output.codes is not None
        assert output.codes.shape == (2, config.quantiser.books, side // config.stride, side // config.stride)
