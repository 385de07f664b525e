"""A plain masked autoencoder (He et al. 2022): timm's patch embedding and blocks, tokens shuffled and put back.

Positions are fixed sines and cosines; there is no class token; targets are normalised for each channel of a patch.
"""

from typing import NamedTuple

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

OURS = {
    "patch_embed.proj.": "to_tokens.", "blocks.": "encoder.", "decoder_embed.": "to_decoder.", "mask_token": "hidden",
    "decoder_blocks.": "decoder.", "decoder_pred.": "to_pixels.", "channel_embed": "channel",
}  # fmt: skip


class Transformer(NamedTuple):
    """Sizes of an encoder or a decoder."""

    width: int
    depth: int
    heads: int

    def blocks(self) -> nn.ModuleList:
        """[B, N, width] → the same."""
        return nn.ModuleList([Block(self.width, self.heads, qkv_bias=True) for _ in range(self.depth)])


class MAE(nn.Module):
    """Mean squared error of hidden patches."""

    pos_embed: Tensor  # [1, L, width]
    decoder_pos_embed: Tensor

    def __init__(
        self, crop: int, channels: int, patch: int, encoder: Transformer, decoder: Transformer, mask_ratio: float
    ) -> None:
        super().__init__()
        self.patch, self.mask_ratio = patch, mask_ratio
        self.patch_embed = PatchEmbed(crop, patch, channels, encoder.width)
        self.register_buffer("pos_embed", sincos(crop // patch, encoder.width), persistent=False)
        self.blocks = encoder.blocks()
        self.norm = nn.LayerNorm(encoder.width)
        self.decoder_embed = nn.Linear(encoder.width, decoder.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder.width))
        self.register_buffer("decoder_pos_embed", sincos(crop // patch, decoder.width), persistent=False)
        self.decoder_blocks = decoder.blocks()
        self.decoder_norm = nn.LayerNorm(decoder.width)
        self.decoder_pred = nn.Linear(decoder.width, patch**2 * channels)

    def forward(self, images: Tensor) -> Tensor:
        x = self.tokens(images)
        x, mask, restore = self.shuffled(x)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_embed(self.norm(x))
        hidden = self.mask_token.repeat(len(x), restore.shape[1] - x.shape[1], 1)
        x = torch.cat([x, hidden], dim=1)
        x = torch.gather(x, 1, restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = x + self.decoder_positions(images)
        for block in self.decoder_blocks:
            x = block(x)
        drawn = self.decoder_pred(self.decoder_norm(x))
        target = self.patchify(images)
        mean = target.mean(dim=-1, keepdim=True)
        variance = target.var(dim=-1, keepdim=True, correction=0)
        target = (target - mean) / (variance + 1e-6) ** 0.5
        loss = (drawn.view(target.shape) - target).pow(2).flatten(2).mean(dim=-1)
        return (loss * mask).sum() / mask.sum()

    def tokens(self, images: Tensor) -> Tensor:
        """[B, L, width]."""
        tokens: Tensor = self.patch_embed(images) + self.pos_embed
        return tokens

    def decoder_positions(self, images: Tensor) -> Tensor:
        """[1, L, width]."""
        return self.decoder_pos_embed

    def shuffled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those that are seen, 1 for each that is hidden [B, L], and where each stands in the shuffled order [B, L]."""
        batch, many, width = x.shape
        seen = int(many * (1 - self.mask_ratio))
        shuffle = torch.rand(batch, many, device=x.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        kept = torch.gather(x, 1, shuffle[:, :seen].unsqueeze(-1).repeat(1, 1, width))
        mask = torch.ones(batch, many, device=x.device)
        mask[:, :seen] = 0
        return kept, torch.gather(mask, 1, restore), restore

    def patchify(self, images: Tensor) -> Tensor:
        """[B, C, Y, X] → [B, L, C, p²]."""
        batch, channels, height, width = images.shape
        rows, columns = height // self.patch, width // self.patch
        x = images.reshape(batch, channels, rows, self.patch, columns, self.patch)
        return torch.einsum("nchpwq->nhwcpq", x).reshape(batch, rows * columns, channels, self.patch**2)


def sincos(side: int, width: int) -> Tensor:
    """[1, side², width]: sines and cosines of y, then of x."""
    omega = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    of_y, of_x = torch.outer(y.flatten(), omega), torch.outer(x.flatten(), omega)
    return torch.cat([of_y.sin(), of_y.cos(), of_x.sin(), of_x.cos()], dim=1).float().unsqueeze(0)
