"""Masked autoencoder (He et al. 2022): most patches are hidden, and drawn again from those that are seen.

    image ─▶ patches ─▶ tokens + positions ─▶ seen ones ─▶ encoder ─▶ decoder, with a token for each hidden one ─▶ image

`stack`     a token is a patch of all channels, in the order in which they are named
`agnostic`  a token is a patch of one channel; all share one projection, and the encoder is not told which channel it is
            (Kraus et al., CVPR 2024, section 3.4): any channels, in any order, give an embedding. The decoder is told.

Images of one batch may have unlike channels, where `agnostic`: tokens of those that an image lacks are not looked at.
The embedding is the mean of the encoder's tokens; there is no class token. Blocks are timm's, whose attention is
`torch.nn.functional.scaled_dot_product_attention`.
"""

import torch
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from train.config import LAST, MAEConfig, Readout
from train.losses.fourier import spectrum_distance
from train.models import patches
from train.models.contrasted import contrasted
from train.models.model import Model, Output
from train.models.pooling import pooled

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

    def forward(
        self, images: Tensor, step: int | None = None, groups: Tensor | None = None, present: Tensor | None = None
    ) -> Output:
        config, target = self.config, self._patches(images)
        there = None if present is None else self._there(present, target)
        hiding = patches.hide(len(target), target.shape[1], config.mask_ratio, images.device, there)
        seen = hiding.order[:, : hiding.seen]
        encoded = self._encoded(self._tokens(images, target, seen), hiding.is_seen)
        drawn = self._decoded(encoded, hiding, images)
        hidden = patches.taken(target, hiding.order[:, hiding.hidden :])
        level, spread = _level(hidden) if config.normalise_patches else (0.0, 1.0)
        scaled = (hidden - level) / spread
        apart = (drawn - scaled).square().mean(dim=(2, 3, 4))
        losses = {"reconstruction": (1 - config.fourier) * _mean(apart, hiding.is_hidden)}
        if config.fourier:
            spectra = spectrum_distance(drawn, scaled).mean(dim=2)
            losses["fourier"] = config.fourier * _mean(spectra, hiding.is_hidden)
        embedding = pooled(encoded, "mean", hiding.is_seen)
        if config.contrast is not None and (self.training or groups is not None):
            of_channels, there = self._of_channels(encoded, hiding, images) if self.agnostic else (None, None)
            losses["contrast"] = contrasted(config.contrast, embedding, of_channels, groups, there)

        def draw() -> Tensor:
            shown = drawn.detach() * spread + level
            if hiding.is_hidden is not None:
                shown = torch.where(hiding.is_hidden[:, :, None, None, None], shown, hidden)
            where = hiding.order[:, hiding.hidden :, None, None, None].expand_as(shown)
            return self._images(target.scatter(1, where, shown), images)

        return Output(losses, embedding.detach(), draw)

    def embed(self, images: Tensor, readout: Readout = LAST, present: Tensor | None = None) -> Tensor:
        target = self._patches(images)
        there = None if present is None else self._there(present, target)
        return pooled(self._encoded(self._tokens(images, target), there, readout.layer), readout.pooling, there)

    @property
    def layers(self) -> int:
        return len(self.encoder)

    def _there(self, present: Tensor, target: Tensor) -> Tensor:
        """[B, tokens] bool, of [B, C]."""
        return present.to(target.device).repeat_interleave(target.shape[1] // present.shape[1], dim=1)

    def _of_channels(self, encoded: Tensor, hiding: patches.Hiding, images: Tensor) -> tuple[Tensor, Tensor]:
        """[B, C, F] the mean of each channel's seen tokens, and [B, C] whether there are any."""
        channels = images.shape[1]
        channel = hiding.order[:, : hiding.seen] // (hiding.order.shape[1] // channels)
        own = channel[:, None] == torch.arange(channels, device=channel.device)[:, None]
        if hiding.is_seen is not None:
            own = own & hiding.is_seen[:, None]
        many = own.sum(dim=2)
        return (own / many.clamp(min=1)[..., None]) @ encoded.float(), many > 0

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

    def _encoded(self, tokens: Tensor, there: Tensor | None, layer: int | None = None) -> Tensor:
        mask = None if there is None else there[:, None, None]
        for block in self.encoder[:layer]:
            tokens = block(tokens, attn_mask=mask)
        encoded: Tensor = self.norm(tokens)
        return encoded

    def _decoded(self, encoded: Tensor, hiding: patches.Hiding, images: Tensor) -> Tensor:
        """[B, hidden tokens, channels of a token, p, p] float32: what is drawn of each."""
        known = self.to_decoder(encoded)
        blank = self.hidden.to(known.dtype)
        if hiding.is_seen is not None:
            known = torch.where(hiding.is_seen[..., None], known, blank)
        blank = blank.expand(len(known), hiding.order.shape[1] - hiding.seen, -1)
        tokens = torch.cat([known, blank], dim=1)
        where = self._positions(images, tokens.shape[2])
        if self.channel is not None:
            where = where + self.channel.repeat_interleave(len(where) // images.shape[1], dim=0)
        tokens = tokens + where[hiding.order]
        mask = None if hiding.is_there is None else hiding.is_there[:, None, None]
        for block in self.decoder:
            tokens = block(tokens, attn_mask=mask)
        drawn = self.to_pixels(self.decoder_norm(tokens[:, hiding.hidden :])).float()
        side = self.config.patch
        return drawn.reshape(*drawn.shape[:2], -1, side, side)


def _level(target: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each patch."""
    variance, mean = torch.var_mean(target, dim=(-2, -1), keepdim=True, correction=0)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def _mean(of_tokens: Tensor, counted: Tensor | None) -> Tensor:
    """The mean over images of the means over their tokens [B, N], those that count."""
    if counted is None:
        return of_tokens.mean()
    return ((of_tokens * counted).sum(dim=1) / counted.sum(dim=1)).mean()
