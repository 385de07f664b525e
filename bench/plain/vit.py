"""timm's own vision transformer: all tokens of an image → their mean."""

import timm
from torch import Tensor, nn

from bench.plain.mae import sincos

OURS = {"vit.patch_embed.proj.": "to_tokens.", "vit.blocks.": "encoder.", "vit.norm.": "norm."}


class ViT(nn.Module):
    """Mean square of an embedding: as a loss it reaches every weight, and costs nothing."""

    def __init__(self, name: str, crop: int, channels: int) -> None:
        super().__init__()
        self.vit = timm.create_model(
            name, img_size=crop, in_chans=channels, num_classes=0, class_token=False, global_pool="avg", fc_norm=False
        )
        side, width = crop // self.vit.patch_embed.patch_size[0], self.vit.embed_dim
        self.vit.pos_embed = nn.Parameter(sincos(side, width), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(images)
        return tokens.mean(dim=1).square().mean()
