"""The small convolutional encoder and decoder of van den Oord et al. 2017, section 4.1.

    encoder   4 x 4 stride 2 (C → h/2), ReLU, 4 x 4 stride 2 (h/2 → h), ReLU, 3 x 3 (h → h), residual blocks
    decoder   3 x 3 (D → h), residual blocks, transposed 4 x 4 stride 2 (h → h/2), ReLU, the same (h/2 → C)
    block     x + 1 x 1 (r → h) of ReLU of 3 x 3 (h → r) of ReLU of x; a last ReLU after all of them

Where we depart from the widely used notebook of it: its ReLU is in place, so that what its blocks add to is ReLU(x).
"""

from torch import Tensor, nn

from train.config import ZalandoConfig


class Block(nn.Module):
    """A residual block."""

    def __init__(self, hiddens: int, residual_hiddens: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.ReLU(), nn.Conv2d(hiddens, residual_hiddens, 3, padding=1, bias=False),
            nn.ReLU(), nn.Conv2d(residual_hiddens, hiddens, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.path(x)
        return added


class ZalandoEncoder(nn.Module):
    """[B, C, Y, X] → feature maps of stride 2, 4 and 4; the last are [B, h, Y / 4, X / 4]."""

    def __init__(self, config: ZalandoConfig, channels: int) -> None:
        super().__init__()
        hiddens = config.num_hiddens
        self.stages = nn.ModuleList([
            nn.Sequential(nn.Conv2d(channels, hiddens // 2, 4, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(hiddens // 2, hiddens, 4, stride=2, padding=1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(hiddens, hiddens, 3, padding=1), *_blocks(config)),
        ])  # fmt: skip

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def zalando_decoder(config: ZalandoConfig, channels: int) -> nn.Sequential:
    """[B, D, y, x] → [B, C, 4 y, 4 x]; no output activation."""
    hiddens = config.num_hiddens
    return nn.Sequential(
        nn.Conv2d(config.latent_dim, hiddens, 3, padding=1), *_blocks(config),
        nn.ConvTranspose2d(hiddens, hiddens // 2, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(hiddens // 2, channels, 4, stride=2, padding=1),
    )  # fmt: skip


def _blocks(config: ZalandoConfig) -> list[nn.Module]:
    blocks = [Block(config.num_hiddens, config.num_residual_hiddens) for _ in range(config.num_residual_layers)]
    return [*blocks, nn.ReLU()]
