from typing import Any, Literal

import pytest
import timm
import torch

from train.config import MAEConfig
from train.models import build
from train.models.mae import MAE, SIZES

TINY: dict[str, Any] = {"size": "tiny", "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}


def _mae(named: int = 3, **more: Any) -> MAE:
    model = build(MAEConfig(**{**TINY, **more}), named)
    assert isinstance(model, MAE)
    return model


@pytest.mark.parametrize("channels", [1, 2, 5, 8])
@pytest.mark.parametrize("mode", ["stack", "agnostic"])
@pytest.mark.parametrize(("patch", "height", "width"), [(16, 64, 64), (8, 64, 80), (32, 128, 64), (14, 70, 84)])
def test_images_of_any_channels_and_size_come_back_in_their_shape(
    channels: int, mode: Any, patch: Any, height: int, width: int
) -> None:
    model = _mae(channels, channels=mode, patch=patch)
    images = torch.randn(2, channels, height, width)
    output = model(images)
    assert output.reconstruction.shape == images.shape
    assert model.embed(images).shape == (2, SIZES["tiny"][0])


@pytest.mark.parametrize("mode", ["stack", "agnostic"])
def test_every_weight_learns(mode: Any) -> None:
    model = _mae(channels=mode, fourier=0.01, layer_scale=1e-4)
    torch.stack(list(model(torch.randn(4, 3, 64, 64)).losses.values())).sum().backward()
    idle = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


@pytest.mark.parametrize("mode", ["stack", "agnostic"])
def test_only_hidden_patches_are_drawn_and_seen_ones_stay(mode: Any) -> None:
    torch.manual_seed(0)
    model = _mae(channels=mode, mask_ratio=0.5)
    images = torch.randn(2, 3, 64, 64)
    same = (model(images).reconstruction == images).unfold(2, 16, 16).unfold(3, 16, 16).flatten(4).all(-1)
    assert float(same.float().mean()) == pytest.approx(0.5, abs=0.03)
    if mode == "stack":
        assert (same == same[:, :1]).all()


@pytest.mark.parametrize("mode", ["stack", "agnostic"])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_that_of_hidden_patches_alone_patch_by_patch(mode: Any, normalise: bool) -> None:
    model = _mae(channels=mode, normalise_patches=normalise, fourier=0.25).eval()
    images = 5 + 3 * torch.randn(2, 3, 64, 64)
    torch.manual_seed(1)
    output = model(images)
    squares, spectra = [], []
    for image, drawn in zip(images, output.reconstruction.detach(), strict=True):
        for top in range(0, 64, 16):
            for left in range(0, 64, 16):
                for channel in range(3):
                    place = (channel, slice(top, top + 16), slice(left, left + 16))
                    theirs, ours = image[place].double(), drawn[place].double()
                    if torch.equal(theirs, ours):
                        continue
                    if normalise:
                        level, spread = theirs.mean(), (theirs.var(correction=0) + 1e-6).sqrt()
                        theirs, ours = (theirs - level) / spread, (ours - level) / spread
                    squares.append((theirs - ours).square().mean())
                    of = [torch.fft.fft2(each, norm="ortho").abs() for each in (theirs, ours)]
                    spectra.append((of[0] - of[1]).abs().mean())
    found = {name: float(loss.detach()) for name, loss in output.losses.items()}
    expected = {"reconstruction": 0.75 * torch.stack(squares).mean(), "fourier": 0.25 * torch.stack(spectra).mean()}
    assert found == pytest.approx({name: float(loss) for name, loss in expected.items()}, rel=1e-4)


def test_what_is_hidden_does_not_reach_the_encoder() -> None:
    model = _mae(normalise_patches=False, mask_ratio=0.5).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.manual_seed(3)
    output = model(images)
    changed = torch.where(output.reconstruction != images, torch.randn_like(images), images)
    torch.manual_seed(3)
    other = model(changed)
    torch.testing.assert_close(other.reconstruction, output.reconstruction)


def test_an_agnostic_embedding_is_the_same_for_any_order_of_channels_and_any_number_has_one() -> None:
    model = _mae(5, channels="agnostic").eval()
    images = torch.randn(2, 5, 64, 64)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model.embed(images[:, order]), model.embed(images))
    for channels in (1, 2, 8):
        assert model.embed(torch.randn(2, channels, 64, 64)).shape == (2, 192)
    assert not torch.allclose(model.embed(images[:, :3]), model.embed(images))


@pytest.mark.parametrize("mode", ["stack", "agnostic"])
def test_different_images_have_different_embeddings(mode: Any) -> None:
    model = _mae(channels=mode).eval()
    found = model.embed(torch.randn(40, 3, 64, 64))
    assert len(found.detach().round(decimals=4).unique(dim=0)) >= 36


def test_the_encoder_is_timms_vision_transformer() -> None:
    ours = _mae(3, patch=16).eval()
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, class_token=False, global_pool="avg", fc_norm=False)
    theirs.load_state_dict(
        {**{f"blocks.{name}": value for name, value in ours.encoder.state_dict().items()},
         **{f"norm.{name}": value for name, value in ours.norm.state_dict().items()},
         "pos_embed": ours._positions(torch.zeros(1, 3, 64, 64), 192)[None],
         "patch_embed.proj.weight": ours.to_tokens.weight.view(192, 3, 16, 16),
         "patch_embed.proj.bias": ours.to_tokens.bias},
        strict=False,
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64)
    expected = theirs.eval().forward_features(images).mean(dim=1)
    torch.testing.assert_close(ours.embed(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large", "huge"])
def test_sizes_are_those_of_the_papers(size: Literal["tiny", "small", "base", "large", "huge"]) -> None:
    millions = {"tiny": 5.3, "small": 21.3, "base": 85.1, "large": 302.3, "huge": 629.7}[size]  # of the encoder
    with torch.device("meta"):
        model = MAE(MAEConfig(size=size), 3)
    own = sum(parameter.numel() for module in (model.encoder, model.norm) for parameter in module.parameters())
    assert own / 1e6 == pytest.approx(millions, rel=0.01)
