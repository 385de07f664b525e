from dataclasses import replace

import pytest
from pydantic import ValidationError

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Archive, Field, Plane
from shardgen.files import Local
from shardgen.select import Selection, parse_where, select


def planes(well: str, z: int, t: int) -> tuple[tuple[Plane, ...], ...]:
    return tuple((Plane(f"{well}_{z}_{t}_{c}.tif"),) for c in range(2))


def archive(plates: int = 2, wells: int = 3, fields: int = 2, z: int = 3, t: int = 1) -> Archive:
    found = tuple(
        Field(f"p{p}", f"A{w}", str(f), slice_, time, planes(f"p{p}_A{w}_{f}", slice_, time))
        for p in range(1, plates + 1) for w in range(1, wells + 1) for f in range(1, fields + 1)
        for time in range(t) for slice_ in range(z)
    )  # fmt: skip
    labels = {
        (f.plate, f.well): {"drug": "none" if f.well == "A1" else "taxol", "dose": int(f.well[1:])} for f in found
    }
    return Archive(
        files=Local("/nowhere"), study="s", source="/nowhere", channels=(Channel(name="DNA"), Channel(name="Actin")),
        fields=found, labels=labels,
    )  # fmt: skip


def taken(**wanted: object) -> list[tuple[str, str, str, int]]:
    return [(f.plate, f.well, f.field, f.z) for f in select(archive(), Selection(**wanted)).fields]  # type: ignore[arg-type]


def test_nothing_asked_is_everything() -> None:
    assert select(archive(), Selection()) == archive()


def test_plates_wells_and_fields_are_taken_by_name_however_a_well_is_written() -> None:
    assert taken(plates=("p2",), wells=("a02",), fields=("1",)) == [("p2", "A2", "1", z) for z in range(3)]
    assert taken(wells=("p1/A03",), fields=("2",)) == [("p1", "A3", "2", z) for z in range(3)]


def test_where_takes_wells_by_their_labels() -> None:
    assert {well for _, well, _, _ in taken(where=parse_where(["drug=taxol", "dose=2|1"]))} == {"A2"}
    assert set(select(archive(), Selection(where={"drug": ("none",)})).labels) == {("p1", "A1"), ("p2", "A1")}


def test_the_limit_comes_last() -> None:
    assert taken(z="middle", limit=2) == [("p1", "A1", "1", 1), ("p1", "A1", "2", 1)]


def test_a_maximum_has_all_planes_of_a_stack_and_a_number_takes_one_slice() -> None:
    (field,) = select(archive(1, 1, 1), Selection(z="max")).fields
    assert field.z == 0
    assert field.planes == tuple(tuple(Plane(f"p1_A1_1_{z}_0_{c}.tif") for z in range(3)) for c in range(2))
    assert {z for _, _, _, z in taken(z="2")} == {2}
    assert {z for _, _, _, z in taken(z="middle")} == {1}


def test_maxima_over_z_and_t_are_over_both() -> None:
    (field,) = select(archive(1, 1, 1, z=2, t=2), Selection(z="max", t="max")).fields
    assert sorted(plane.path for plane in field.planes[0]) == sorted(
        f"p1_A1_1_{z}_{t}_0.tif" for z in range(2) for t in range(2)
    )


def test_a_stack_that_lacks_a_plane_has_no_maximum() -> None:
    whole = archive(1, 1, 1)
    lacking = replace(whole.fields[1], planes=((), whole.fields[1].planes[1]))
    found = select(replace(whole, fields=(whole.fields[0], lacking, whole.fields[2])), Selection(z="max"))
    assert [len(channel) for channel in found.fields[0].planes] == [0, 3]


def test_channels_are_ordered_renamed_and_left_out_as_asked() -> None:
    found = select(archive(1, 1, 1, 1), Selection(channels={"Actin": "F-actin", "DNA": "DNA"}))
    assert [channel.name for channel in found.channels] == ["F-actin", "DNA"]
    assert [plane.path for (plane,) in found.fields[0].planes] == ["p1_A1_1_0_0_1.tif", "p1_A1_1_0_0_0.tif"]
    assert [c.name for c in select(archive(), Selection(channels={"DNA": "DNA"})).channels] == ["DNA"]


def test_fields_without_any_plane_of_the_channels_are_not_taken() -> None:
    whole = archive(1, 2, 1, 1)
    lacking = replace(whole.fields[0], planes=((), whole.fields[0].planes[1]))
    found = select(replace(whole, fields=(lacking, whole.fields[1])), Selection(channels={"DNA": "DNA"}))
    assert [field.well for field in found.fields] == ["A2"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"plates": ("p3",)}, "no plate 'p3'; did you mean 'p"),
        ({"wells": ("H12",)}, "wells that are not there: H12; there are A1, A2"),
        ({"wells": ("p9/A1",)}, "p9/A1"),
        ({"fields": ("7",)}, "no field '7'"),
        ({"channels": {"DNAA": "DNAA"}}, "no channel 'DNAA'; did you mean 'DNA'"),
        ({"channels": {"DNA": "x", "Actin": "x"}}, "two channels have one name"),
        ({"where": {"drugs": ("taxol",)}}, "no label column 'drugs'; did you mean 'drug'"),
        ({"where": {"drug": ("taxl",)}}, "no drug 'taxl'; did you mean 'taxol'"),
        ({"z": 9}, "no field has z 9; known: 0, 1, 2"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(wanted: dict[str, object], said: str) -> None:
    with pytest.raises(SourceError) as caught:
        select(archive(), Selection(**wanted))  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_slices_are_words_or_numbers() -> None:
    assert Selection(z="3").z == 3  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="each, max, middle or an index"):
        Selection(t="mean")


def test_where_is_a_column_and_its_values() -> None:
    assert parse_where(["Gene Symbol=KIF11|RPB1", "x= a "]) == {"Gene Symbol": ("KIF11", "RPB1"), "x": ("a",)}
    with pytest.raises(SourceError, match="should look like"):
        parse_where(["Gene Symbol"])
