import numpy as np
import pytest
import torch

from train.models import patches


@pytest.mark.parametrize("side", [8, 14, 16, 32])
def test_patches_are_squares_of_the_image_row_by_row_and_join_to_it(side: int) -> None:
    images = torch.randn(2, 3, 2 * side, 4 * side)
    cut = patches.cut(images, side)
    assert cut.shape == (2, 3, 8, side, side)
    torch.testing.assert_close(cut[:, :, 6], images[:, :, side : 2 * side, 2 * side : 3 * side])
    assert torch.equal(patches.joined(cut, 2 * side, 4 * side), images)


def test_positions_are_sines_and_cosines_of_row_and_column() -> None:
    table = patches.positions(3, 5, 16).numpy()
    assert table.shape == (15, 16)
    row, column = 2, 3
    frequency = 1 / 10000 ** (np.arange(4) / 4)
    expected = [wave(place * frequency) for place in (row, column) for wave in (np.sin, np.cos)]
    np.testing.assert_allclose(table[row * 5 + column], np.concatenate(expected), rtol=1e-6, atol=1e-7)
    assert len(np.unique(table.round(5), axis=0)) == 15


@pytest.mark.parametrize(("ratio", "seen"), [(0.75, 16), (0.5, 32), (0.99, 1), (0.001, 63)])
def test_the_share_asked_for_is_hidden_each_token_as_often_as_any_other(ratio: float, seen: int) -> None:
    torch.manual_seed(0)
    hiding = patches.hide(2000, 64, ratio, torch.device("cpu"))
    assert hiding.seen == hiding.hidden == seen
    assert torch.equal(hiding.order.sort(dim=1).values, torch.arange(64).expand(2000, -1))
    shown = hiding.order[:, :seen]
    often = torch.bincount(shown.flatten(), minlength=64) / 2000
    spread = 5 * (ratio * (1 - ratio) / 2000) ** 0.5 + 0.01
    assert (often - seen / 64).abs().max() < spread
    assert not torch.equal(shown[0].sort().values, shown[1].sort().values)


def test_of_images_that_lack_tokens_the_same_share_of_their_own_is_hidden() -> None:
    torch.manual_seed(0)
    there = torch.rand(50, 24) < torch.rand(50, 1).clamp(min=0.2)
    there[:, :2] = True
    hiding = patches.hide(50, 24, 0.75, torch.device("cpu"), there)
    assert hiding.is_seen is not None
    assert hiding.is_hidden is not None
    assert hiding.is_there is not None
    for image in range(50):
        own = set(there[image].nonzero().flatten().tolist())
        seen = set(hiding.order[image, : hiding.seen][hiding.is_seen[image]].tolist())
        hidden = set(hiding.order[image, hiding.hidden :][hiding.is_hidden[image]].tolist())
        assert seen | hidden == own
        assert not seen & hidden
        assert len(seen) == min(max(1, round(len(own) * 0.25)), len(own) - 1)
        assert set(hiding.order[image][hiding.is_there[image]].tolist()) == own
