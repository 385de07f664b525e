"""Each family of models can learn sixteen real fields by heart: nothing between image and loss is broken."""

from pathlib import Path

import pytest
import torch
from command_line import ROOT, command
from torch import Tensor

import bie_stream
from bie_stream.augment import NO_AUGMENT
from train.config import (
    AEConfig,
    AnyModelConfig,
    EMACodesConfig,
    FSQConfig,
    GradientCodesConfig,
    MAEConfig,
    ResidualCodesConfig,
    VAEConfig,
    VQVAEConfig,
    ZalandoConfig,
)
from train.models import build

PLATE = ROOT.parent / "shared" / "data" / "bbbc013_fkhr_plate"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLATE.is_dir(), reason="the BBBC013 plate is not beside this checkout"),
]
BOOK = {"codes": 256, "decay": 0.9}
# Steps, and the peak signal-to-noise ratio in dB to be reached; of a masked autoencoder that of what was hidden.
# The mean of each image as its reconstruction has 16 dB.
FAMILIES: dict[str, tuple[AnyModelConfig, int, float]] = {
    "ae": (AEConfig(stride=8), 100, 28),
    "ae, mirrored": (AEConfig(stride=8, decoder="mirror"), 100, 28),
    "vae": (VAEConfig(stride=8, beta=1e-3), 100, 25),
    "vqvae, ema": (VQVAEConfig(stride=4, latent_dim=32, quantiser=EMACodesConfig(**BOOK)), 100, 27),
    "vqvae, gradient": (VQVAEConfig(stride=4, latent_dim=32, quantiser=GradientCodesConfig(**BOOK)), 100, 25),
    "vqvae, residual": (VQVAEConfig(stride=4, latent_dim=32, quantiser=ResidualCodesConfig(**BOOK, levels=2)), 100, 27),
    "vqvae, fsq": (VQVAEConfig(stride=4, latent_dim=32, quantiser=FSQConfig(levels=(8, 8, 8))), 100, 26),
    "zalando": (ZalandoConfig(num_hiddens=64, quantiser=EMACodesConfig(**BOOK)), 100, 24),
    **{
        f"mae, {channels}": (
            MAEConfig(
                size="tiny", patch=32, channels=channels, mask_ratio=0.5, normalise_patches=False, decoder_width=192,
                decoder_depth=2,
            ), 300, 19,
        )
        for channels in ("stack", "agnostic")
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """[16, 2, 64, 64]: the middle of the first sixteen fields, each channel with mean 0 and variance 1."""
    out = tmp_path_factory.mktemp("plate") / "fields"
    build = command(
        "-m", "shardgen", "build", PLATE, "--pattern", "Channel{channel}-{*}-{row}-{column}.tif", "--channels",
        "1=FKHR-GFP,2=DNA", "--plate", "1049", "--limit", "16", "--out", out,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr
    dataset = bie_stream.open(Path(out))
    loader = bie_stream.Loader(dataset, 16, crop=64, normalise="image", augment=NO_AUGMENT, dtype=torch.float32)
    return next(iter(loader)).images.clone()


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_real_fields_are_learned_by_heart(fields: Tensor, family: str) -> None:
    config, steps, expected_db = FAMILIES[family]
    torch.manual_seed(0)
    model = build(config, 2)
    is_mae = isinstance(config, MAEConfig)
    highest = 5e-4 if is_mae else 2e-3
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.95 if is_mae else 0.999))
    images = fields.contiguous(memory_format=torch.channels_last)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = highest * min(1, (step + 1) / 10, 2 * (1 - step / steps))
        torch.manual_seed(step)
        optimiser.zero_grad()
        torch.stack(list(model(images, step=step).losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    model.eval()
    with torch.no_grad():
        drawn = model(images).reconstruction
    found_db = _psnr_db(drawn, images)
    print(f"{family}: {found_db:.1f} dB after {steps} steps")
    assert found_db > expected_db


def _psnr_db(drawn: Tensor, images: Tensor) -> float:
    """Over what was drawn, with the range of each channel of each image as its peak: their mean."""
    span = (images.amax(dim=(2, 3)) - images.amin(dim=(2, 3))).square()[:, :, None, None]
    relative = ((drawn - images).square() / span)[drawn != images]
    return float(-10 * torch.log10(relative.mean()))
