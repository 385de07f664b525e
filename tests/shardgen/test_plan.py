import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Archive, Field, Plane
from shardgen.files import Local
from shardgen.plan import Options, deal, make_plan


def archive(wells: int = 6, fields: int = 2, plates: int = 2) -> Archive:
    found = tuple(
        Field(f"p{p}", f"A{w}", str(f), 0, 0, ((Plane(f"p{p}/A{w}_{f}_1.tif"),), (Plane(f"p{p}/A{w}_{f}_2.tif"),)))
        for p in range(plates) for w in range(1, wells + 1) for f in range(1, fields + 1)
    )  # fmt: skip
    return Archive(
        files=Local("/nowhere"), study="s", source="/nowhere", channels=(Channel(name="a"), Channel(name="b")),
        fields=found,
        labels={(f.plate, f.well): {"drug": f"d{int(f.well[1:]) % 3}"} for f in found},
    )  # fmt: skip


def test_the_same_archive_and_options_have_one_hash_wherever_the_archive_lies() -> None:
    here = make_plan(archive(), Options(tile=8), "uint8", (20, 30))
    there = make_plan(replace(archive(), files=Local("/else"), source="x"), Options(tile=8), "uint8", (20, 30))
    assert here.sha256 == there.sha256


def test_sizes_that_an_archive_lists_change_neither_planes_nor_the_hash() -> None:
    bare = archive()
    sized = replace(
        bare,
        fields=tuple(
            replace(f, planes=tuple((Plane(p.path, p.index, n),) for n, (p,) in enumerate(f.planes)))
            for f in bare.fields
        ),
    )
    assert (sized.fields, hash(sized.fields)) == (bare.fields, hash(bare.fields))
    assert make_plan(sized, Options(), "uint8", (8, 8)).sha256 == make_plan(bare, Options(), "uint8", (8, 8)).sha256
    assert sorted([Plane("b"), Plane("a", (), 5), Plane("a", (), None)])[2] == Plane("b", (), 3)


def test_every_option_and_every_fact_of_the_archive_changes_the_hash() -> None:
    base = archive()
    option_sets = [
        Options(), Options(tile=8), Options(tile=9), Options(split_seed=1), Options(split_by="plate"),
        Options(split_by="drug"), Options(splits={"train": 1.0}), Options(splits={"train": 0.7, "val": 0.3}),
        Options(shard_bytes=1), Options(folds=2), Options(stratify_by="drug"),
    ]  # fmt: skip
    hashes = [make_plan(base, options, "uint8", (20, 30)).sha256 for options in option_sets]
    changed = [
        replace(base, study="t"), replace(base, licence="CC0"), replace(base, citation="c"),
        replace(base, pixel_size_um=1.0),
        replace(base, fields=base.fields[1:]), replace(base, channels=(Channel(name="a"), Channel(name="c"))),
        replace(base, labels={well: {"drug": "other"} for well in base.labels}), replace(base, labels={}),
    ]  # fmt: skip
    hashes += [make_plan(other, Options(), "uint8", (20, 30)).sha256 for other in changed]
    hashes += [
        make_plan(base, Options(), "uint16", (20, 30)).sha256,
        make_plan(base, Options(), "uint8", (30, 20)).sha256,
    ]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize(
    "shares", [(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (0.6, 0.25, 0.15), (1 / 3, 1 / 3, 1 / 3), (1.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("groups", [1, 2, 3, 5, 7, 10, 13, 24])
def test_shares_are_as_near_as_whole_groups_allow(shares: tuple[float, ...], groups: int) -> None:
    splits = dict(zip(("train", "val", "test"), shares, strict=True))
    names = [f"g{i}" for i in range(groups)]
    dealt = deal(dict.fromkeys(names, ""), splits, 0)
    assert sorted(dealt) == sorted(names)
    counted = Counter(dealt.values())
    found = [counted[name] for name in splits]

    def far(counts: tuple[int, ...] | list[int]) -> float:
        return sum((count - share * groups) ** 2 for count, share in zip(counts, shares, strict=True))

    positive = [share > 0 for share in shares]
    allowed = [  # as many splits as can be get a group, and those without a share get none
        counts for counts in itertools.product(range(groups + 1), repeat=3)
        if sum(counts) == groups and sum(count > 0 for count in counts) == min(groups, sum(positive))
        and all(share or not count for count, share in zip(counts, positive, strict=True))
    ]  # fmt: skip
    assert far(found) == pytest.approx(min(map(far, allowed)))


@pytest.mark.parametrize("split_by", ["well", "plate", "drug"])
def test_no_group_stands_on_two_sides(split_by: str) -> None:
    plan = make_plan(archive(), Options(split_by=split_by, splits={"a": 0.5, "b": 0.5}), "uint8", (20, 30))
    sides: dict[object, set[str]] = {}
    for planned in itertools.chain(*plan.shards):
        f = planned.field
        group = {"well": (f.plate, f.well), "plate": f.plate, "drug": planned.labels["drug"]}[split_by]
        sides.setdefault(group, set()).add(planned.split)
    assert all(len(names) == 1 for names in sides.values())
    assert set.union(*sides.values()) == {"a", "b"}


def test_a_deal_depends_on_the_seed_and_not_on_the_order_of_groups() -> None:
    names, splits = [f"g{i}" for i in range(40)], {"train": 0.5, "val": 0.5}
    strata = dict.fromkeys(names, "")
    assert deal(strata, splits, 3) == deal(dict.fromkeys(names[::-1], ""), splits, 3)
    assert deal(strata, splits, 3) != deal(strata, splits, 4)


@pytest.mark.parametrize("sizes", [(40, 40), (7, 13, 30), (1, 2, 3, 50), (5,) * 9])
def test_every_stratum_has_its_shares_rounded_down_and_the_whole_its_own(sizes: tuple[int, ...]) -> None:
    strata = {f"s{s}g{g}": f"s{s}" for s, size in enumerate(sizes) for g in range(size)}
    splits = {"train": 0.7, "val": 0.2, "test": 0.1}
    dealt = deal(strata, splits, 0)
    whole = Counter(dealt.values())
    for name, share in splits.items():
        assert abs(whole[name] - share * len(strata)) < 1
        for s, size in enumerate(sizes):
            here = sum(side == name for group, side in dealt.items() if strata[group] == f"s{s}")
            assert here >= int(share * size + 1e-9)


@pytest.mark.parametrize("split_by", ["well", "plate"])
def test_folds_keep_groups_whole_and_are_of_like_size(split_by: str) -> None:
    options = Options(split_by=split_by, folds=2, stratify_by="drug")
    plan = make_plan(archive(), options, "uint8", (20, 30))
    sides: dict[object, set[int | None]] = {}
    for planned in itertools.chain(*plan.shards):
        f = planned.field
        sides.setdefault(f.plate if split_by == "plate" else (f.plate, f.well), set()).add(planned.fold)
    assert all(len(folds) == 1 for folds in sides.values())
    counted = Counter(fold for (fold,) in sides.values())
    assert counted == {0: len(sides) // 2, 1: len(sides) // 2}
    assert "fold" in plan.schema.names


def test_a_column_to_stratify_by_must_be_a_label() -> None:
    with pytest.raises(SourceError, match="--stratify-by 'drugs' is not a label; did you mean 'drug'"):
        make_plan(archive(), Options(stratify_by="drugs"), "uint8", (20, 30))


def test_tiles_are_a_grid_of_whole_squares_from_the_top_left() -> None:
    plan = make_plan(archive(), Options(tile=8), "uint8", (20, 30))
    assert plan.tiles == tuple((y, x) for y in (0, 8) for x in (0, 8, 16))
    cover = np.zeros((20, 30), int)
    for top, left in plan.tiles:
        cover[top : top + 8, left : left + 8] += 1
    assert (cover[:16, :24] == 1).all()
    assert cover.sum() == 16 * 24
    assert plan.samples == 24 * 6
    assert plan.sample_bytes == 2 * 8 * 8


def test_whole_fields_are_one_sample_each() -> None:
    plan = make_plan(archive(), Options(), "float32", (20, 30))
    assert plan.tiles == ((0, 0),)
    assert plan.tile_shape == (20, 30)
    assert (plan.samples, plan.sample_bytes) == (24, 2 * 20 * 30 * 4)


def test_shards_hold_all_fields_in_order_and_no_more_than_asked() -> None:
    made = archive()
    plan = make_plan(made, Options(shard_bytes=5 * 2 * 20 * 30 + 1), "uint8", (20, 30))
    assert [len(shard) for shard in plan.shards] == [5, 5, 5, 5, 4]
    assert tuple(planned.field for shard in plan.shards for planned in shard) == made.fields
    assert len(make_plan(made, Options(shard_bytes=1), "uint8", (20, 30)).shards) == 24


def test_options_that_do_not_fit_the_archive_are_refused() -> None:
    with pytest.raises(SourceError, match="tile 21 is larger"):
        make_plan(archive(), Options(tile=21), "uint8", (20, 30))
    with pytest.raises(SourceError, match=r"--split-by 'dose' is .*drug"):
        make_plan(archive(), Options(split_by="dose"), "uint8", (20, 30))
    with pytest.raises(ValueError, match="add up to 1"):
        Options(splits={"train": 0.5, "val": 0.4})
    with pytest.raises(ValueError, match="add up to 1"):
        Options(splits={"train": 1.5, "val": -0.5})
    with pytest.raises(ValueError, match="add up to 1"):
        Options(splits={"train": float("nan")})
    make_plan(archive(), Options(folds=12), "uint8", (20, 30))
    with pytest.raises(SourceError, match=r"--folds 13 is more than there are groups.* 12"):
        make_plan(archive(), Options(folds=13), "uint8", (20, 30))


def test_fields_whose_sample_names_would_be_one_are_refused() -> None:
    base = archive(wells=1, fields=1, plates=1)
    (one,) = base.fields
    twins = replace(base, fields=(replace(one, plate="a b"), replace(one, plate="a.b")), labels={})
    with pytest.raises(SourceError, match="names 2 fields"):
        make_plan(twins, Options(), "uint8", (20, 30))
    with pytest.raises(SourceError, match="longer than 90"):
        make_plan(replace(base, fields=(replace(one, plate="p" * 90),), labels={}), Options(), "uint8", (20, 30))
