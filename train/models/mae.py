"""Masked autoencoder (He et al. 2022): most patches are hidden, and drawn again from those that are seen.

    image ─▶ patches ─▶ tokens + positions ─▶ seen ones ─▶ encoder ─▶ decoder, with a token for each hidden one ─▶ image

`stack`     a token is a patch of all channels, in the order in which they are named
`agnostic`  a token is a patch of one channel; all share one projection, and the encoder is not told which channel it is
            (Kraus et al., CVPR 2024, section 3.4): any channels, in any order, give an embedding. The decoder is told.

The embedding is the mean of the encoder's tokens; there is no class token. Blocks are timm's, whose attention is
`torch.nn.functional.scaled_dot_product_attention`.
"""

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from train.config import MAEConfig
from train.losses.fourier import spectrum_distance
from train.models import patches
from train.models.model import Model, Output

_VARIANCE_FLOOR = 1e-6
SIZES = {  # width, depth, heads: those of DeiT and ViT
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "huge": (1280, 32, 16),
}  # fmt: skip


class MAE(Model):
    """A masked autoencoder over a vision transformer."""

    def __init__(self, config: MAEConfig, channels: int) -> None:
        super().__init__()
        self.config, self.agnostic = config, config.channels == "agnostic"
        width, depth, heads = SIZES[config.size]
        numbers = config.patch**2 * (1 if self.agnostic else channels)
        self.to_tokens = nn.Linear(numbers, width)
        rates = [config.drop_path * i / (depth - 1) for i in range(depth)]  # stochastic depth, more of it further on
        self.encoder = nn.ModuleList(
            Block(width, heads, qkv_bias=True, init_values=config.layer_scale, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(width)
        self.to_decoder = nn.Linear(width, config.decoder_width)
        self.hidden = nn.Parameter(torch.zeros(config.decoder_width))
        self.channel = nn.Parameter(torch.zeros(channels, config.decoder_width)) if self.agnostic else None
        self.decoder = nn.ModuleList(
            Block(config.decoder_width, config.decoder_heads, qkv_bias=True) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(config.decoder_width)
        self.to_pixels = nn.Linear(config.decoder_width, numbers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for parameter in (self.hidden, self.channel):
            if parameter is not None:
                trunc_normal_(parameter, std=0.02)

    def forward(self, images: Tensor, step: int | None = None, groups: Tensor | None = None) -> Output:
        target = self._patches(images)
        seen, hidden = patches.hide(len(images), target.shape[1], self.config.mask_ratio, images.device)
        encoded = self._encoded(self._tokens(images, target, seen))
        ours = self._decoded(encoded, seen, hidden, images)
        theirs = patches.taken(target, hidden)
        level, spread = _level(theirs)
        scaled = (theirs - level) / spread if self.config.normalise_patches else theirs
        losses = {"reconstruction": (1 - self.config.fourier) * (ours - scaled).square().mean()}
        if self.config.fourier:
            losses["fourier"] = self.config.fourier * spectrum_distance(ours, scaled).mean()
        with torch.no_grad():
            drawn = ours * spread + level if self.config.normalise_patches else ours
            shown = target.scatter(1, _over(hidden, drawn), drawn)
        return Output(losses, self._images(shown, images), encoded.detach().float().mean(dim=1))

    def embed(self, images: Tensor) -> Tensor:
        return self._encoded(self._tokens(images, self._patches(images))).float().mean(dim=1)

    def _patches(self, images: Tensor) -> Tensor:
        """[B, tokens, channels of a token, p, p] float32."""
        cut = patches.cut(images.float(), self.config.patch)
        return cut.flatten(1, 2)[:, :, None] if self.agnostic else cut.transpose(1, 2)

    def _images(self, tokens: Tensor, images: Tensor) -> Tensor:
        """The inverse of `_patches`."""
        batch, channels, height, width = images.shape
        cut = tokens.reshape(batch, channels, -1, *tokens.shape[3:]) if self.agnostic else tokens.transpose(1, 2)
        return patches.joined(cut, height, width)

    def _tokens(self, images: Tensor, target: Tensor, seen: Tensor | None = None) -> Tensor:
        """[B, S, width]: of those that are seen; None: of all."""
        embedded: Tensor = self.to_tokens((target if seen is None else patches.taken(target, seen)).flatten(2))
        where = self._positions(images, embedded.shape[2])
        return embedded + (where if seen is None else where[seen])

    def _positions(self, images: Tensor, width: int) -> Tensor:
        """[tokens, width]: of an agnostic model's each channel the same."""
        rows, columns = (side // self.config.patch for side in images.shape[2:])
        where = patches.positions(rows, columns, width).to(images.device)
        return where.repeat(images.shape[1], 1) if self.agnostic else where

    def _encoded(self, tokens: Tensor) -> Tensor:
        for block in self.encoder:
            tokens = block(tokens)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def _decoded(self, encoded: Tensor, seen: Tensor, hidden: Tensor, images: Tensor) -> Tensor:
        """[B, H, channels of a token, p, p] float32: what is drawn of each hidden one."""
        known = self.to_decoder(encoded)
        tokens = torch.cat([known, self.hidden.to(known.dtype).expand(*hidden.shape, -1)], dim=1)
        order = torch.cat([seen, hidden], dim=1)
        where = self._positions(images, tokens.shape[2])
        if self.channel is not None:
            where = where + self.channel.repeat_interleave(len(where) // images.shape[1], dim=0)
        tokens = tokens + where[order]
        for block in self.decoder:
            tokens = block(tokens)
        drawn = self.to_pixels(self.decoder_norm(tokens[:, seen.shape[1] :])).float()
        side = self.config.patch
        return drawn.reshape(*drawn.shape[:2], -1, side, side)


def _level(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each patch."""
    variance, mean = torch.var_mean(target, dim=(-2, -1), keepdim=True, correction=0)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def _over(numbers: Tensor, tokens: Tensor) -> Tensor:
    """Numbers [B, S] of tokens as an index into all that they hold."""
    return numbers.reshape(*numbers.shape, *[1] * (tokens.dim() - 2)).expand(-1, -1, *tokens.shape[2:])
