from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import on_ranks
from torch import Tensor
from vector_quantize_pytorch import ResidualVQ, VectorQuantize

from train.config import EMACodesConfig, FSQConfig, GradientCodesConfig, QuantiserConfig, ResidualCodesConfig
from train.models.quantise import Quantised, VectorQuantiser, quantiser

ALL: list[Any] = [
    EMACodesConfig(codes=32), GradientCodesConfig(codes=32), ResidualCodesConfig(codes=32, levels=3),
    FSQConfig(levels=(5, 5, 3)),
]  # fmt: skip
WITH_BOOKS = ALL[:3]


def kinds(configs: list[Any]) -> Any:
    return pytest.mark.parametrize("config", configs, ids=lambda config: config.kind)


@kinds(ALL)
def test_a_map_comes_back_in_its_shape_with_a_code_at_every_position_and_gradients_straight_through(
    config: QuantiserConfig,
) -> None:
    torch.manual_seed(0)
    quantise = quantiser(config, dim=6)
    z = torch.randn(2, 6, 4, 5, requires_grad=True)
    found: Quantised = quantise(z)
    assert found.latent.shape == z.shape
    assert found.codes.shape == (2, config.books, 4, 5)
    assert 0 <= int(found.codes.min()) <= int(found.codes.max()) < config.codes
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((found.latent * weights).sum(), z)
    if config.kind != "fsq":  # whose bound and projections have gradients of their own
        torch.testing.assert_close(gradient, weights)
    assert gradient.any(dim=1).all()


@kinds(WITH_BOOKS)
def test_each_position_gets_the_nearest_codes_of_what_is_left_over(config: EMACodesConfig) -> None:
    torch.manual_seed(0)
    quantise = VectorQuantiser(config, dim=3).eval()
    z = torch.randn(2, 3, 4, 5)
    found = quantise(z)
    rest = z.permute(0, 2, 3, 1).double().numpy()
    whole, squares = np.zeros_like(rest), 0.0
    for number, book in enumerate(quantise.books):
        codes = book.codes.detach().double().numpy()
        nearest = np.linalg.norm(rest[..., None, :] - codes, axis=-1).argmin(-1)
        assert (found.codes[:, number].numpy() == nearest).all()
        whole, rest = whole + codes[nearest], rest - codes[nearest]
        squares += np.square(rest).mean()
    np.testing.assert_allclose(found.latent.permute(0, 2, 3, 1).detach().numpy(), whole, atol=1e-5)
    assert float(found.losses["commitment"]) == pytest.approx(config.commitment * squares, rel=1e-4)


def test_residual_codes_are_those_of_another_implementation() -> None:
    torch.manual_seed(0)
    ours = VectorQuantiser(ResidualCodesConfig(codes=16, levels=3), dim=4).eval()
    theirs = ResidualVQ(dim=4, codebook_size=16, num_quantizers=3).eval()
    for layer, book in zip(theirs.layers, ours.books, strict=True):
        layer._codebook.embed.data.copy_(book.codes[None])
    z = torch.randn(2, 4, 5, 6)
    found = ours(z)
    latent, codes, _ = theirs(z.permute(0, 2, 3, 1).reshape(2, 30, 4))
    torch.testing.assert_close(found.latent.permute(0, 2, 3, 1).reshape(2, 30, 4), latent)
    assert torch.equal(found.codes.permute(0, 2, 3, 1).reshape(2, 30, 3), codes)


def test_finite_scalars_are_the_rounded_numbers_of_the_paper() -> None:
    quantise = quantiser(FSQConfig(levels=(7, 5)), dim=2).eval()
    z = 2 * torch.randn(3, 2, 4, 4)
    found = quantise(z)
    levels = torch.tensor([7, 5]).view(1, 2, 1, 1)
    half = (levels - 1) / 2
    rounded = (torch.tanh(z) * half * (1 + 1e-3)).round()  # equation of section 3.1, for odd numbers of levels
    torch.testing.assert_close(found.latent, rounded / half)
    places = (rounded + half).long()
    assert torch.equal(found.codes[:, 0], places[:, 0] + 7 * places[:, 1])


def test_the_codebook_follows_the_moving_averages_of_the_paper() -> None:
    torch.manual_seed(0)
    decay, epsilon, codes = 0.9, 1e-5, 5
    quantise = VectorQuantiser(EMACodesConfig(codes=codes, decay=decay, revive_below=0.0), dim=2).train()
    (book,) = quantise.books
    quantise(torch.randn(4, 2, 4, 4))  # places the codes
    uses, sums = book.uses.numpy().astype(np.float64), book.sums.numpy().astype(np.float64)
    before = book.codes.numpy().copy()
    z = torch.randn(4, 2, 4, 4)
    quantise(z)
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 2).numpy()
    chosen = np.linalg.norm(vectors[:, None] - before, axis=-1).argmin(1)
    for k in range(codes):
        uses[k] = decay * uses[k] + (1 - decay) * (chosen == k).sum()
        sums[k] = decay * sums[k] + (1 - decay) * vectors[chosen == k].sum(0)
    smoothed = (uses + epsilon) / (uses.sum() + codes * epsilon) * uses.sum()
    np.testing.assert_allclose(book.codes.numpy(), sums / smoothed[:, None], rtol=1e-4, atol=1e-6)


def test_moving_averages_over_many_steps_are_those_of_another_implementation() -> None:
    torch.manual_seed(0)
    ours = VectorQuantiser(EMACodesConfig(codes=8, decay=0.8, revive_below=0.0), dim=4).train()
    (book,) = ours.books
    ours(torch.randn(2, 4, 6, 6))
    theirs = VectorQuantize(dim=4, codebook_size=8, decay=0.8, rotation_trick=False).train()
    theirs._codebook.embed.data.copy_(book.codes[None])
    theirs._codebook.cluster_size.data.copy_(book.uses[None])
    theirs._codebook.embed_avg.data.copy_(book.sums[None])
    for _ in range(5):
        z = torch.randn(2, 4, 6, 6)
        found = ours(z)
        latent, codes, loss = theirs(z.permute(0, 2, 3, 1).reshape(2, 36, 4))
        assert torch.equal(found.codes.reshape(2, 36), codes)
        torch.testing.assert_close(found.latent.permute(0, 2, 3, 1).reshape(2, 36, 4), latent)
        torch.testing.assert_close(found.losses["commitment"], 0.25 * loss.squeeze())
    torch.testing.assert_close(book.codes, theirs._codebook.embed[0], rtol=1e-4, atol=1e-5)


def test_the_optimiser_moves_a_codebook_by_gradient_towards_what_it_stands_for() -> None:
    torch.manual_seed(0)
    quantise = VectorQuantiser(GradientCodesConfig(codes=4, commitment=0.5, revive_below=0.0), dim=2).train()
    (book,) = quantise.books
    z = torch.randn(8, 2, 4, 4, requires_grad=True)
    found = quantise(z)
    assert set(found.losses) == {"commitment", "codebook"}
    torch.testing.assert_close(found.losses["commitment"], 0.5 * found.losses["codebook"])
    to_codes = torch.autograd.grad(found.losses["codebook"], book.moved, retain_graph=True)[0]
    vectors, nearest = z.detach().permute(0, 2, 3, 1).reshape(-1, 2), found.codes.flatten()
    expected = torch.stack([2 * (book.codes.detach()[k] - vectors[nearest == k]).sum(0) for k in range(4)]) / z.numel()
    torch.testing.assert_close(to_codes, expected)
    (to_z,) = torch.autograd.grad(found.losses["commitment"], z)
    assert to_z.any()
    (none,) = torch.autograd.grad(quantise(z).losses["codebook"], z, allow_unused=True)
    assert none is None


@kinds(WITH_BOOKS)
@pytest.mark.parametrize("batch", [8, 64])
def test_the_losses_do_not_depend_on_the_size_of_the_batch(config: QuantiserConfig, batch: int) -> None:
    quantise = quantiser(config, dim=3).eval()
    z = torch.randn(1, 3, 4, 4)
    one, many = quantise(z).losses, quantise(z.repeat(batch, 1, 1, 1)).losses
    assert one.keys() == many.keys()
    for name, loss in one.items():
        torch.testing.assert_close(loss, many[name])


@pytest.mark.parametrize("of", [EMACodesConfig, GradientCodesConfig])
def test_dead_codes_are_revived_so_a_collapsed_codebook_comes_back_to_use(of: Any) -> None:
    torch.manual_seed(0)
    quantise = quantiser(of(codes=64, decay=0.9, revive_below=0.03), dim=4).train()
    quantise(torch.zeros(1, 4, 8, 8))  # all codes begin on one point
    codes = torch.empty(0)
    for _ in range(40):
        codes = quantise(torch.randn(8, 4, 8, 8)).codes
    assert len(codes.unique()) > 48


@kinds(ALL)
def test_an_image_has_many_codes_and_evaluation_leaves_the_quantiser_alone(config: QuantiserConfig) -> None:
    torch.manual_seed(0)
    quantise = quantiser(config, dim=4).train()
    quantise(torch.randn(8, 4, 8, 8))
    before = {name: value.clone() for name, value in quantise.state_dict().items()}
    codes: Tensor = quantise.eval()(torch.randn(1, 4, 8, 8)).codes
    assert len(codes[:, 0].unique()) > 12
    assert all(torch.equal(before[name], value) for name, value in quantise.state_dict().items())


def _learned(config: QuantiserConfig, batches: Tensor) -> dict[str, Tensor]:
    """The state after a few steps of training, as an engine has them: seeded alike on all ranks."""
    torch.manual_seed(0)
    quantise = quantiser(config, dim=4).train()
    optimiser = torch.optim.SGD([*quantise.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for number, z in enumerate(batches):
        torch.manual_seed(number)
        found = quantise(z)
        optimiser.zero_grad()
        if "codebook" in found.losses:
            found.losses["codebook"].backward()
            for parameter in quantise.parameters():  # as data parallelism averages them
                if torch.distributed.is_initialized():
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= torch.distributed.get_world_size()
        optimiser.step()
    return quantise.state_dict()


def _on_rank(rank: int, folder: str, config: QuantiserConfig) -> None:
    batches = torch.load(Path(folder) / "in.pt", weights_only=True)
    torch.save(_learned(config, batches.chunk(2, dim=1)[rank]), Path(folder) / f"{rank}.pt")


@kinds(WITH_BOOKS)
def test_two_ranks_hold_one_codebook_and_it_is_that_of_one_process(config: QuantiserConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"decay": 0.8, "revive_below": 0.3})
    torch.manual_seed(1)
    batches = torch.randn(6, 4, 4, 5, 5) * torch.tensor([1.0, 3.0]).repeat_interleave(2)[:, None, None, None]
    torch.save(batches, tmp_path / "in.pt")
    on_ranks(2, _on_rank, str(tmp_path), config)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = _learned(config, batches)
    assert one.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(one[name], two[name]), name
        torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)
