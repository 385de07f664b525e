import re
from typing import Any

import pytest
import torch

from train.config import AEConfig, EMACodesConfig, MAEConfig, VAEConfig, VQVAEConfig
from train.health import alarms, effective_rank


@pytest.mark.parametrize("rank", [1, 3, 10])
def test_the_effective_rank_counts_directions_of_equal_spread(rank: int) -> None:
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(64, rank)).Q
    spread = torch.linalg.qr(torch.randn(200, rank) - torch.randn(200, rank).mean(0)).Q
    spread = torch.linalg.qr(spread - spread.mean(0)).Q
    assert float(effective_rank(7 + 3 * spread @ directions.T)) == pytest.approx(rank, rel=1e-2)


def test_the_effective_rank_of_what_is_all_alike_is_0_and_of_noise_nearly_full() -> None:
    torch.manual_seed(0)
    assert float(effective_rank(torch.full((8, 5), 3.3))) == 0
    assert 25 < float(effective_rank(torch.randn(1000, 32))) <= 32
    assert float(effective_rank(torch.randn(8, 100))) <= 7


@pytest.mark.parametrize(
    ("model", "metrics", "said"),
    [
        (
            VQVAEConfig(quantiser=EMACodesConfig(codes=512)),
            {"codes_used": 20},
            "dead codes: 20 of 512 .* raise model.quantiser.revive_below",
        ),
        (VQVAEConfig(), {"codes_per_image": 1.0}, "every position has the same; lower model.stride"),
        (VAEConfig(), {"active_units": 0.0}, "posterior collapse: .* lower model.beta"),
        (MAEConfig(), {"effective_rank": 1.2}, "spreads over 1.2 directions in 32 images; lower optimiser.lr"),
        (AEConfig(), {"data_wait_share": 0.4}, "waiting for it takes 40% of the time"),
    ],
)
def test_what_goes_wrong_is_said_with_what_to_try(model: Any, metrics: dict[str, float], said: str) -> None:
    (alarm,) = alarms(metrics, model, 32)
    assert re.search(said, alarm)


@pytest.mark.parametrize("model", [AEConfig(), VAEConfig(), VQVAEConfig(), MAEConfig()])
def test_a_healthy_model_raises_no_alarm(model: Any) -> None:
    sound = {
        "codes_used": 400, "codes_per_image": 30, "active_units": 12, "effective_rank": 14, "data_wait_share": 0.01,
    }  # fmt: skip
    assert alarms(sound, model, 32) == []
    assert alarms({}, model, 32) == []
