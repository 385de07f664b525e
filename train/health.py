"""Signs that a model learns nothing of use, and what to try: pure functions of numbers that are logged anyway."""

from collections.abc import Mapping

import torch
from torch import Tensor

from train.config import AnyModelConfig, FSQConfig, VAEConfig, VQVAEConfig, ZalandoConfig

_FEW_CODES, _LOW_RANK, _LONG_WAIT = 0.1, 0.1, 0.2


def effective_rank(embeddings: Tensor) -> Tensor:
    """How many directions B embeddings [B, F] spread over, from 0 to min(B − 1, F): a scalar.

    exp of the entropy of their singular values about the mean, each as a share of the sum (Roy and Vetterli 2007); 0 if
    all are alike.
    """
    embeddings = embeddings.double()
    values = torch.linalg.svdvals(embeddings - embeddings.mean(dim=0))
    total = values.sum()
    if total <= 1e-12 * max(1.0, float(embeddings.abs().max())) * len(embeddings):
        return torch.zeros((), dtype=torch.float64)
    shares = values / total
    return torch.exp(-torch.special.xlogy(shares, shares).sum())


def alarms(metrics: Mapping[str, float], model: AnyModelConfig, images: int) -> list[str]:
    """What is wrong, each in one line that ends with what to try.

    Args:
        metrics: of a logging step; what is not among them is not looked at.
        images: that the effective rank is of.
    """
    found = []
    if isinstance(model, VQVAEConfig | ZalandoConfig):
        quantiser = model.quantiser
        codes = quantiser.codes * quantiser.books
        if metrics.get("codes_used", codes) < _FEW_CODES * codes:
            fewer = "model.quantiser." + ("levels" if isinstance(quantiser, FSQConfig) else "codes")
            revive = "" if isinstance(quantiser, FSQConfig) else "raise model.quantiser.revive_below, or "
            found.append(f"dead codes: {metrics['codes_used']:.0f} of {codes} are in use; {revive}take fewer {fewer}")
        if metrics.get("codes_per_image", 2) < 2:
            found.append(
                "one code for all of an image: every position has the same; lower model.stride or "
                "model.quantiser.commitment, or see whether the images are empty"
            )
    if isinstance(model, VAEConfig) and metrics.get("active_units", 1) < 1:
        found.append(
            "posterior collapse: no latent channel says anything; lower model.beta, or give model.beta_warmup_steps or "
            "model.free_nats"
        )
    if metrics.get("effective_rank", images) < max(1.0, _LOW_RANK * min(images, 20)):
        found.append(
            f"collapsed embedding: it spreads over {metrics['effective_rank']:.1f} directions in {images} images; "
            "lower optimiser.lr, or the weights of all losses but the reconstruction's"
        )
    if metrics.get("data_wait_share", 0) > _LONG_WAIT:
        found.append(
            f"slow data: waiting for it takes {metrics['data_wait_share']:.0%} of the time; give more data.threads, or "
            "see what the loader's report says"
        )
    return found
