from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bie_stream.augment import NO_AUGMENT, Augment, View, draw, reach
from bie_stream.errors import ConfigError

N = 8000
SQUARE = np.arange(9).reshape(3, 3)
ROTATIONS = [np.rot90(SQUARE, k).tolist() for k in range(4)]
SYMMETRIES = ROTATIONS + [np.rot90(SQUARE.T, k).tolist() for k in range(4)]
ALL = Augment(
    rotate_deg=180, scale=(0.8, 1.5), gain=0.5, offset=0.3, drop_channel=0.2, noise=0.1, blur_px=1.5, defocus_px=3
)


def _draw(
    augment: Augment, n: int = N, size: tuple[int, int] = (20, 30), crop: int = 16,
    present: Sequence[bool] = (True,) * 3, **asked: int,
) -> View:  # fmt: skip
    how: dict[str, Any] = {"seed": 3, "epoch": 0, "present": np.array(present), **asked}
    return draw(augment, np.arange(n), np.tile(size, (n, 1)), (crop, crop), **how)


def _arrays(view: View) -> dict[str, npt.NDArray[Any]]:
    """Everything that a view says of a sample, by name."""
    of_noise = {} if view.noise is None else {"std": view.noise.std, "counter": view.noise.counter}
    return {name: values for name, values in {**vars(view), **of_noise}.items() if isinstance(values, np.ndarray)}


def _symmetry(view: View) -> npt.NDArray[np.float64]:
    """Swap and mirrors as a matrix [B, 2, 2]: where in the crop the image's steps along y and along x lead."""
    matrix = np.zeros((len(view.swap), 2, 2))
    rows = np.arange(len(view.swap))
    matrix[rows, view.swap.astype(int), 0] = np.where(view.flip_y, -1, 1)
    matrix[rows, 1 - view.swap.astype(int), 1] = np.where(view.flip_x, -1, 1)
    return matrix


def _is_uniform(values: npt.NDArray[Any], low: float, high: float) -> bool:
    """Whether values lie within, and each tenth of the range has its share of them, up to five standard errors."""
    counts, _ = np.histogram(values, bins=10, range=(low, high))
    return bool(counts.sum() == values.size and np.abs(counts / values.size - 0.1).max() < 1.5 / np.sqrt(values.size))


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
    whole = _arrays(draw(ALL, np.arange(100), shapes, (16, 16), seed=9, epoch=4, present=np.ones(3, bool)))
    assert len(whole) == 12
    for ids in (np.array([70]), np.array([99, 3, 3, 50]), np.arange(100)[::-1]):
        part = _arrays(draw(ALL, ids, shapes[ids], (16, 16), seed=9, epoch=4, present=np.ones(3, bool)))
        for name, values in whole.items():
            np.testing.assert_array_equal(part[name], values[ids], err_msg=name)


def test_views_change_with_seed_epoch_and_the_high_bits_of_the_id() -> None:
    shapes = np.tile((1000, 1000), (50, 1))
    ids = np.arange(50)
    tops = [
        draw(Augment(), ids + shift, shapes, (16, 16), seed=seed, epoch=epoch).top
        for seed, epoch, shift in [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (0, 1, 0), (0, 0, 2**32)]
    ]
    for i, one in enumerate(tops):
        assert all((one == other).mean() < 0.1 for other in tops[:i])


def test_crops_and_symmetries_stay_what_they_were_in_every_version() -> None:
    ids = np.array([0, 1, 2, 12345678901, 7])
    view = draw(Augment(), ids, np.tile((1080, 1280), (5, 1)), (224, 224), seed=17, epoch=3)
    assert view.top.tolist() == [288, 349, 57, 777, 239]
    assert view.left.tolist() == [1032, 568, 848, 457, 352]
    assert view.swap.tolist() == [False, True, True, True, False]
    assert view.flip_y.tolist() == [False, True, False, False, True]
    assert view.flip_x.tolist() == [True, False, True, True, True]


def test_all_that_is_drawn_stays_what_it_was_in_every_version() -> None:
    ids = np.array([0, 1, 12345678901])
    view = draw(ALL, ids, np.tile((1080, 1280), (3, 1)), (224, 224), seed=17, epoch=3, view=1, present=np.ones(2, bool))
    expected = {
        "top": [634, 363, 737], "left": [566, 71, 492],
        "swap": [1, 0, 1], "flip_y": [0, 0, 1], "flip_x": [1, 0, 0],
        "matrix": [[[0.7405, -0.8781], [0.8781, 0.7405]], [[-0.4462, -0.9768], [0.9768, -0.4462]],
                   [[1.2452, 0.0947], [-0.0947, 1.2452]]],
        "gain": [[0.7716, 1.218], [0.9465, 0.7033], [0.9603, 0]],
        "offset": [[0.202, -0.1679], [-0.0683, 0.256], [-0.1136, 0]],
        "sigma": [0.9896, 0.1556, 0.6642], "radius": [0.3887, 0, 0.9013],
        "std": [[0.054, 0.054], [0.0041, 0.0041], [0.0742, 0]],
        "counter": [[0, 0, 3], [1, 0, 3], [3755744309, 2, 3]],
    }  # fmt: skip
    assert set(_arrays(view)) == set(expected)
    for name, values in _arrays(view).items():
        np.testing.assert_allclose(values, expected[name], atol=6e-5, err_msg=name)
    assert view.noise is not None
    assert view.noise.key == (17, 3 + 2**16)


def test_each_view_of_a_visit_is_another_one() -> None:
    first, second = _draw(ALL), _draw(ALL, view=1)
    assert first.noise is not None
    assert second.noise is not None
    assert first.noise.key != second.noise.key
    for name, values in _arrays(first).items():
        same = (values == _arrays(second)[name]).mean()
        assert same == 1 if name == "counter" else same < 0.6, name


def test_nothing_is_drawn_for_what_is_off() -> None:
    for augment in (Augment(), NO_AUGMENT):
        view = _draw(augment)
        assert (view.matrix, view.gain, view.offset, view.sigma, view.radius, view.noise) == (None,) * 6


@pytest.mark.parametrize(
    ("off", "names"),
    [({"gain": 0.0}, ["gain"]), ({"offset": 0.0}, ["offset"]), ({"drop_channel": 0.0}, ["gain", "offset", "std"]),
     ({"noise": 0.0}, ["std", "counter"]), ({"blur_px": 0.0}, ["sigma"]), ({"defocus_px": 0.0}, ["radius"]),
     ({"rotate_deg": 0.0}, ["matrix", "top", "left"]), ({"scale": (1.0, 1.0)}, ["matrix", "top", "left"])],
)  # fmt: skip
def test_switching_one_thing_off_changes_no_other(off: dict[str, Any], names: list[str]) -> None:
    whole, less = _arrays(_draw(ALL)), _arrays(_draw(replace(ALL, **off)))
    for name, values in whole.items():
        assert (name in less and np.array_equal(less[name], values)) == (name not in names), name


def test_a_channel_is_treated_alike_however_many_stand_beside_it() -> None:
    augment = replace(ALL, drop_channel=0)
    few, many = _draw(augment, present=[True] * 2), _draw(augment, present=[True] * 5)
    assert few.gain is not None
    assert many.gain is not None
    np.testing.assert_array_equal(few.gain, many.gain[:, :2])
    assert abs(np.corrcoef(many.gain.T)[0, 1:]).max() < 0.1


def test_parameters_are_even_over_their_range() -> None:
    view = _draw(replace(ALL, drop_channel=0))
    assert view.matrix is not None
    turn = view.matrix @ np.linalg.inv(_symmetry(view))
    assert _is_uniform(np.degrees(np.arctan2(turn[:, 0, 1], turn[:, 0, 0])), -180, 180)
    assert _is_uniform(-0.5 * np.log(np.linalg.det(turn)), np.log(0.8), np.log(1.5))
    assert view.gain is not None
    assert _is_uniform(np.log(view.gain), -np.log(1.5), np.log(1.5))
    assert view.offset is not None
    assert _is_uniform(view.offset, -0.3, 0.3)
    assert view.noise is not None
    assert _is_uniform(view.noise.std[:, 0], 0, 0.1)
    assert view.sigma is not None
    assert _is_uniform(view.sigma, 0, 1.5)
    assert view.radius is not None
    assert _is_uniform(view.radius[view.radius > 0], 0, 3)
    assert abs((view.radius > 0).mean() - 0.5) < 2.5 / np.sqrt(N)


def test_a_matrix_turns_and_scales_without_shear() -> None:
    view = _draw(replace(ALL, rotate_deg=10.0))
    assert view.matrix is not None
    turn = view.matrix @ np.linalg.inv(_symmetry(view))
    np.testing.assert_allclose(turn[:, 0, 0], turn[:, 1, 1], atol=1e-12)
    np.testing.assert_allclose(turn[:, 0, 1], -turn[:, 1, 0], atol=1e-12)
    assert 9 < np.degrees(np.arctan2(turn[:, 0, 1], turn[:, 0, 0])).max() <= 10


@pytest.mark.parametrize(("drop", "channels"), [(0.2, 4), (0.9, 3), (1.0, 3), (0.5, 1)])
def test_channels_are_dropped_as_often_as_asked_and_never_all_of_a_sample(drop: float, channels: int) -> None:
    view = _draw(Augment(drop_channel=drop), present=[True] * channels)
    assert view.gain is not None
    assert view.offset is not None
    assert set(np.unique(view.gain)) <= {0, 1}
    assert not view.offset.any()
    assert view.gain.any(axis=1).all()
    rescued = drop**channels / channels  # a share of the samples would have lost all, and keeps one channel of these
    assert np.abs((view.gain == 0).mean(axis=0) - (drop - rescued)).max() < 2.5 / np.sqrt(N)


@pytest.mark.parametrize("drop", [0, 0.2, 1.0])
def test_nothing_is_done_to_an_absent_channel_and_of_those_that_are_there_one_is_kept(drop: float) -> None:
    augment = replace(ALL, drop_channel=drop)
    view = _arrays(_draw(augment, present=[False, True, True, False]))
    whole = _arrays(_draw(replace(ALL, drop_channel=0), present=[True] * 4))
    for name in ("gain", "offset", "std"):
        assert not view[name][:, [0, 3]].any()
        kept = view[name] != 0
        np.testing.assert_array_equal(view[name][kept], whole[name][kept])
        assert kept.sum(axis=1).min() == (1 if drop else 2)
    share = {0: 1, 0.2: 0.8 + 0.2**2 / 2, 1.0: 0.5}[drop]
    assert np.abs((view["gain"][:, 1:3] != 0).mean(axis=0) - share).max() < 2.5 / np.sqrt(N)


def test_a_dropped_channel_has_neither_offset_nor_noise() -> None:
    view = _draw(ALL)
    assert view.gain is not None
    assert view.offset is not None
    assert view.noise is not None
    dropped = view.gain == 0
    assert 0.1 < dropped.mean() < 0.3
    assert not view.offset[dropped].any()
    assert not view.noise.std[dropped].any()
    assert view.noise.std[~dropped].all()


def test_a_turned_frame_lies_in_the_sample_where_that_has_room() -> None:
    view = _draw(ALL, size=(60, 70))
    assert view.matrix is not None
    centre = np.stack([view.top, view.left], axis=1) + 7.5
    beyond = reach(view.matrix, (16, 16))
    assert (centre - beyond >= -1e-6).all()
    assert (centre + beyond <= np.array([59, 69]) + 1e-6).all()
    assert beyond.max() > 10
    near = np.minimum(centre - beyond, np.array([59, 69]) - centre - beyond).min(axis=0)
    assert (near < 1).all()  # the whole sample is made use of


def test_where_a_sample_has_no_room_for_a_turned_frame_it_is_in_the_middle_and_the_crop_inside() -> None:
    view = _draw(ALL, size=(16, 19))
    assert set(view.top.tolist()) == {0}
    assert {1, 2} <= set(view.left.tolist()) <= {0, 1, 2, 3}
    turned = _draw(Augment(rotate_deg=180), size=(18, 18))
    assert turned.matrix is not None
    wide = (reach(turned.matrix, (16, 16)) > 8.6).all(axis=1)
    assert set(turned.top[wide].tolist()) == {1}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rotate_deg": 181}, "rotate_deg 181 should be between 0, which is off, and 180"),
        ({"gain": -0.1}, "gain -0.1 should be between 0, which is off, and 9"),
        ({"drop_channel": 1.5}, "drop_channel 1.5 should be between 0, which is off, and 1"),
        ({"blur_px": float("nan")}, "blur_px nan should be between 0, which is off, and 16"),
        ({"defocus_px": float("inf")}, "defocus_px inf should be between 0, which is off, and 16"),
        ({"scale": (0.4, 1)}, r"scale \[0.4, 1\] should be \[least, greatest\] between 0.5 and 2"),
        ({"scale": (1.5, 1.2)}, r"scale \[1.5, 1.2\] should be"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        Augment(**asked)
    assert "\n" not in str(caught.value)
