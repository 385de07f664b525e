import numpy as np
import pytest
import torch

from train.config import Pooling
from train.models.pooling import pooled


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "std", "max", "mean+std"])
def test_features_are_pooled_over_the_positions_that_there_are(pooling: Pooling, masked: bool) -> None:
    torch.manual_seed(0)
    features = 3 + torch.randn(4, 9, 5)
    there = torch.rand(4, 9) < 0.6
    there[:, 0] = True
    found = pooled(features, pooling, there if masked else None).numpy()
    rows = []
    for image, own in zip(features.double().numpy(), there.numpy(), strict=True):
        values = image[own] if masked else image
        parts = {"mean": values.mean(0), "std": values.std(0), "max": values.max(0)}
        rows.append(np.concatenate([parts[name] for name in pooling.split("+")]))
    np.testing.assert_allclose(found, np.array(rows), rtol=1e-5, atol=1e-6)
