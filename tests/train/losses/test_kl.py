import pytest
import torch
from torch.distributions import Normal, kl_divergence

from train.losses.kl import divergence, kl_loss, warm


def test_the_divergence_is_that_of_two_normal_distributions() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0, 1))
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert not divergence(torch.zeros(3), torch.zeros(3)).any()


def test_with_squared_errors_the_weight_is_the_variance_of_the_noise_in_the_evidence_lower_bound() -> None:
    torch.manual_seed(0)
    images, output = torch.randn(5, 3, 8, 8, dtype=torch.float64), torch.randn(5, 3, 8, 8, dtype=torch.float64)
    kl = torch.rand(5, 4, 2, 2, dtype=torch.float64)
    beta, numbers = 0.3, 3 * 8 * 8
    bound = Normal(output, beta**0.5).log_prob(images).sum((1, 2, 3)) - kl.sum((1, 2, 3))
    constant = numbers * 0.5 * torch.log(torch.tensor(2 * torch.pi * beta, dtype=torch.float64))
    loss = (output - images).square().mean() + beta * kl_loss(kl, numbers)
    torch.testing.assert_close(loss, 2 * beta / numbers * -(bound.mean() + constant))


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_the_loss_depends_neither_on_the_batch_nor_on_the_size(batch: int) -> None:
    kl = torch.rand(1, 4, 2, 2)
    one = kl_loss(kl, 100)
    torch.testing.assert_close(kl_loss(kl.expand(batch, -1, -1, -1), 100), one)
    torch.testing.assert_close(kl_loss(kl.repeat(1, 1, 3, 5), 1500), one)


def test_free_nats_cost_a_constant_and_have_no_gradient() -> None:
    kl = torch.tensor([0.1, 0.9])[None, :, None, None].expand(3, 2, 4, 4).clone().requires_grad_()
    loss = kl_loss(kl, 1, free_nats=0.5)
    assert float(loss.detach()) == pytest.approx(2 * 16 * (0.5 + 0.9))
    loss.backward()
    assert kl.grad is not None
    assert not kl.grad[:, 0].any()
    assert kl.grad[:, 1].all()


def test_a_weight_grows_evenly_from_nothing() -> None:
    assert [warm(0.4, step, 4) for step in (0, 1, 2, 4, 9, None)] == [0, 0.1, 0.2, 0.4, 0.4, 0.4]
    assert warm(0.4, 0, 0) == 0.4
