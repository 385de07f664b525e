import numpy as np
import pytest

from bie_stream.augment import NO_AUGMENT, Augment, View, draw

N = 8000
SQUARE = np.arange(9).reshape(3, 3)
ROTATIONS = [np.rot90(SQUARE, k).tolist() for k in range(4)]
SYMMETRIES = ROTATIONS + [np.rot90(SQUARE.T, k).tolist() for k in range(4)]


def _draw(augment: Augment, n: int = N, size: tuple[int, int] = (20, 30), crop: int = 16, epoch: int = 0) -> View:
    return draw(augment, np.arange(n), np.tile(size, (n, 1)), (crop, crop), seed=3, epoch=epoch)


def _seen(view: View) -> list[list[list[int]]]:
    """What the view makes of a square with nine different pixels, for each sample."""
    seen = []
    for swap, flip_y, flip_x in zip(view.swap, view.flip_y, view.flip_x, strict=True):
        square = SQUARE.T if swap else SQUARE
        square = np.flipud(square) if flip_y else square
        seen.append((np.fliplr(square) if flip_x else square).tolist())
    return seen


@pytest.mark.parametrize(
    ("augment", "allowed"),
    [
        (Augment(), SYMMETRIES),
        (Augment(flip=False), ROTATIONS),
        (Augment(quarter_turn=False), [SQUARE.tolist(), SQUARE[::-1].tolist(), SQUARE[:, ::-1].tolist(), ROTATIONS[2]]),
        (NO_AUGMENT, [SQUARE.tolist()]),
    ],
    ids=["eight symmetries", "rotations only", "mirrors only", "nothing"],
)
def test_allowed_symmetries_occur_evenly_and_no_others(augment: Augment, allowed: list[list[list[int]]]) -> None:
    seen = _seen(_draw(augment))
    counts = [seen.count(symmetry) for symmetry in allowed]
    assert sum(counts) == N
    share = 1 / len(allowed)
    assert np.abs(np.array(counts) - N * share).max() <= 5 * np.sqrt(N * share * (1 - share))


def test_crop_corners_stay_within_the_sample_and_reach_each_place_evenly() -> None:
    view = _draw(Augment())
    tops, lefts = np.bincount(view.top), np.bincount(view.left)
    assert (len(tops), len(lefts)) == (20 - 16 + 1, 30 - 16 + 1)
    for counts in (tops, lefts):
        share = 1 / len(counts)
        assert np.abs(counts - N * share).max() <= 5 * np.sqrt(N * share * (1 - share))


def test_a_crop_as_large_as_the_sample_has_one_place() -> None:
    view = _draw(Augment(), size=(16, 16))
    assert not view.top.any()
    assert not view.left.any()


def test_each_sample_is_cropped_within_its_own_shape() -> None:
    shapes = np.stack([np.arange(16, 116), np.arange(115, 15, -1)], axis=1)
    views = [draw(Augment(), np.arange(100), shapes, (16, 16), seed=0, epoch=epoch) for epoch in range(50)]
    assert all((view.top >= 0).all() and (view.top <= shapes[:, 0] - 16).all() for view in views)
    assert all((view.left >= 0).all() and (view.left <= shapes[:, 1] - 16).all() for view in views)


def test_without_a_random_place_the_crop_is_at_the_centre() -> None:
    view = _draw(Augment(crop_anywhere=False), size=(20, 31))
    assert set(view.top.tolist()) == {2}
    assert set(view.left.tolist()) == {7}


def test_the_view_of_a_sample_does_not_depend_on_the_batch_it_is_in() -> None:
    shapes = np.random.default_rng(0).integers(16, 90, (100, 2))
    whole = draw(Augment(), np.arange(100), shapes, (16, 16), seed=9, epoch=4)
    for ids in (np.array([70]), np.array([99, 3, 3, 50]), np.arange(100)[::-1]):
        part = draw(Augment(), ids, shapes[ids], (16, 16), seed=9, epoch=4)
        for name in ("top", "left", "swap", "flip_y", "flip_x"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[ids], err_msg=name)


def test_views_change_with_seed_epoch_and_the_high_bits_of_the_id() -> None:
    shapes = np.tile((1000, 1000), (50, 1))
    ids = np.arange(50)
    tops = [
        draw(Augment(), ids + shift, shapes, (16, 16), seed=seed, epoch=epoch).top
        for seed, epoch, shift in [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 2**32)]
    ]
    for i, one in enumerate(tops):
        assert all((one == other).mean() < 0.1 for other in tops[:i])
