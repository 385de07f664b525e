import numpy as np
import torch

from train.models.quantise import VectorQuantiser


def test_each_position_gets_its_nearest_code_and_gradients_pass_straight_through() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(codes=7, dim=3, decay=0.9, revive_below=0.0).eval()
    z = torch.randn(2, 3, 4, 5, requires_grad=True)
    quantised, codes, commitment = quantiser(z)
    vectors, book = z.detach().permute(0, 2, 3, 1).numpy(), quantiser.codebook.numpy()
    nearest = np.linalg.norm(vectors[..., None, :] - book, axis=-1).argmin(-1)
    assert (codes.numpy() == nearest).all()
    np.testing.assert_allclose(quantised.detach().permute(0, 2, 3, 1).numpy(), book[nearest], atol=1e-6)
    np.testing.assert_allclose(commitment.item(), np.square(vectors - book[nearest]).mean(), rtol=1e-5)
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((quantised * weights).sum(), z)
    torch.testing.assert_close(gradient, weights)


def test_the_codebook_follows_the_moving_averages_of_the_paper() -> None:
    torch.manual_seed(0)
    decay, epsilon, codes = 0.9, 1e-5, 5
    quantiser = VectorQuantiser(codes, dim=2, decay=decay, revive_below=0.0).train()
    quantiser(torch.randn(4, 2, 4, 4))  # places the codes
    uses, sums = quantiser.uses.numpy().astype(np.float64), quantiser.sums.numpy().astype(np.float64)
    book = quantiser.codebook.numpy().copy()
    z = torch.randn(4, 2, 4, 4)
    quantiser(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    chosen = np.linalg.norm(vectors[:, None] - book, axis=-1).argmin(1)
    for k in range(codes):
        uses[k] = decay * uses[k] + (1 - decay) * (chosen == k).sum()
        sums[k] = decay * sums[k] + (1 - decay) * vectors[chosen == k].sum(0)
    smoothed = (uses + epsilon) / (uses.sum() + codes * epsilon) * uses.sum()
    np.testing.assert_allclose(quantiser.codebook.numpy(), sums / smoothed[:, None], rtol=1e-4, atol=1e-6)


def test_the_commitment_loss_does_not_depend_on_the_size_of_the_batch() -> None:
    quantiser = VectorQuantiser(codes=7, dim=3, decay=0.9, revive_below=0.0).eval()
    z = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(quantiser(z)[2], quantiser(z.repeat(5, 1, 1, 1))[2])


def test_dead_codes_are_revived_so_a_collapsed_codebook_comes_back_to_use() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(codes=64, dim=4, decay=0.9, revive_below=0.03).train()
    quantiser(torch.zeros(1, 4, 8, 8))  # all codes begin on one point
    for _ in range(40):
        _, codes, _ = quantiser(torch.randn(8, 4, 8, 8))
    assert len(codes.unique()) > 48


def test_an_image_has_many_codes_and_evaluation_leaves_the_codebook_alone() -> None:
    torch.manual_seed(0)
    quantiser = VectorQuantiser(codes=64, dim=4, decay=0.9, revive_below=0.03).train()
    quantiser(torch.randn(8, 4, 8, 8))
    before = quantiser.codebook.clone()
    _, codes, _ = quantiser.eval()(torch.randn(1, 4, 8, 8))
    assert len(codes.unique()) > 16
    assert torch.equal(before, quantiser.codebook)
