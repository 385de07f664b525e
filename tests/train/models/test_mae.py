from typing import Any, Literal

import pytest
import timm
import torch

from train.config import ContrastConfig, MAEConfig, Readout
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


def _mixed() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of unlike channels in one batch, zeros where there are none."""
    torch.manual_seed(0)
    present = torch.tensor([[True, True, False], [True, True, True], [False, False, True], [True, False, True]])
    return torch.randn(4, 3, 64, 64) * present[:, :, None, None], present


def test_an_embedding_is_that_of_the_channels_which_an_image_has() -> None:
    model = _mae(3, channels="agnostic").eval()
    images, present = _mixed()
    for readout in (Readout(), Readout(layer=5, pooling="mean+std"), Readout(layer=None, pooling="max")):
        found = model.embed(images, readout, present)
        for image, own, expected in zip(images, present, found, strict=True):
            torch.testing.assert_close(model.embed(image[None, own], readout)[0], expected, rtol=1e-4, atol=1e-5)


def test_channels_that_an_image_lacks_change_nothing() -> None:
    model = _mae(3, channels="agnostic", fourier=0.1, contrast=ContrastConfig(of="channels")).train()
    images, present = _mixed()
    spoilt = torch.where(present[:, :, None, None], images, torch.full_like(images, 50.0))
    outputs = []
    for given in (images, spoilt):
        torch.manual_seed(1)
        outputs.append(model(given, present=present))
    for name, loss in outputs[0].losses.items():
        torch.testing.assert_close(loss, outputs[1].losses[name])
        assert loss.isfinite()
    torch.testing.assert_close(outputs[0].embedding, outputs[1].embedding)
    there = present[:, :, None, None].expand_as(images)
    torch.testing.assert_close(outputs[0].reconstruction[there], outputs[1].reconstruction[there])
    assert not outputs[0].reconstruction[~there].any()


def test_a_batch_whose_images_all_have_all_channels_is_one_without_a_mask() -> None:
    model = _mae(3, channels="agnostic", fourier=0.1).train()
    images = torch.randn(3, 3, 64, 64)
    found = []
    for present in (None, torch.ones(3, 3, dtype=torch.bool)):
        torch.manual_seed(1)
        found.append(model(images, present=present))
    for name, loss in found[0].losses.items():
        torch.testing.assert_close(loss, found[1].losses[name])
    torch.testing.assert_close(found[0].reconstruction, found[1].reconstruction)


def test_every_weight_learns_from_mixed_channels() -> None:
    model = _mae(3, channels="agnostic")
    images, present = _mixed()
    torch.stack(list(model(images, present=present).losses.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("mode", "of"), [("stack", "replicates"), ("agnostic", "replicates"), ("agnostic", "channels")]
)
def test_contrast_draws_together_what_belongs_together(mode: Any, of: Any) -> None:
    torch.manual_seed(0)
    contrast = ContrastConfig(of=of, label="well" if of == "replicates" else None, weight=1.0)
    model = _mae(2, channels=mode, contrast=contrast, mask_ratio=0.5)
    images, groups = torch.randn(6, 2, 64, 64), torch.tensor([0, 0, 1, 1, 2, 2])
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    found = []
    for _ in range(15):
        loss = model(images, groups=groups).losses["contrast"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    assert found[-1] < 0.7 * found[0]


def test_any_block_can_be_read_out() -> None:
    model = _mae().eval()
    images = torch.randn(2, 3, 64, 64)
    assert model.layers == 12
    torch.testing.assert_close(model.embed(images, Readout(layer=12)), model.embed(images))
    tokens = model._tokens(images, model._patches(images))
    for block in list(model.encoder)[:3]:
        tokens = block(tokens)
    torch.testing.assert_close(model.embed(images, Readout(layer=3)), model.norm(tokens).mean(dim=1))


@pytest.mark.parametrize("mode", ["stack", "agnostic"])
@pytest.mark.parametrize(("channels", "side"), [*((channels, 64) for channels in range(1, 9)), (3, 128), (2, 256)])
@torch.no_grad()
def test_shapes_of_one_to_eight_channels_at_64_to_256_pixels(mode: Any, channels: int, side: int) -> None:
    model = _mae(channels, channels=mode).eval()
    images = torch.randn(2, channels, side, side)
    assert model(images).reconstruction.shape == images.shape
    assert model.embed(images).shape == (2, 192)
