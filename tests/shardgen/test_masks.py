import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from command_line import ROOT
from PIL import Image

from bie_stream.errors import SourceError, SourceMissing
from shardgen.archive import Archive, Field, Masks, Place, Plane
from shardgen.files import open_files
from shardgen.masks import find_masks, objects_of, read_mask
from shardgen.pixels import open_zarr
from shardgen.select import Selection, select
from shardgen.sources import ome_zarr, tiff_folder

DATA = ROOT.parent / "shared" / "data"
SEGMENTED = DATA / "ome_zarr_fixtures" / "mobie" / "skimage-2dt-zarr"
NUCLEI = DATA / "idr0036_hoechst" / "masks"
Array = np.ndarray[Any, Any]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
A1: Place = ("p", "A1", "1", 0, 0)


# ---- objects of a label image ---------------------------------------------------------------------------------------


def by_loops(mask: Array) -> dict[int, list[float]]:
    """Number → centre, one pixel after another."""
    pixels: dict[int, list[tuple[int, int]]] = {}
    for y, x in itertools.product(*map(range, mask.shape)):
        if mask[y, x]:
            pixels.setdefault(int(mask[y, x]), []).append((y, x))
    return {n: [sum(p[axis] for p in pixels[n]) / len(pixels[n]) for axis in (0, 1)] for n in sorted(pixels)}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (17, 1), (23, 31)])
def test_centres_are_the_means_of_the_pixels_of_each_number(dtype: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for largest in (1, 3, 100, np.iinfo(dtype).max if dtype != "uint64" else 2**63 - 1):
        known = rng.integers(0, largest, 5, endpoint=True, dtype=np.int64).astype(dtype)
        known[0] = largest
        noise, stripes = (known[rng.integers(0, 5, size)] for size in (shape, (shape[0], 1)))
        for mask in (noise, np.asfortranarray(noise), np.broadcast_to(stripes, shape), noise * (noise == largest)):
            found, expected = objects_of(mask), by_loops(mask)
            assert found.numbers.dtype == np.int64
            assert found.numbers.tolist() == list(expected)
            np.testing.assert_allclose(found.centres, np.reshape(list(expected.values()), (-1, 2)), rtol=1e-12)
            assert not found.labels


def test_objects_that_touch_are_two_and_one_in_pieces_is_one() -> None:
    mask = np.array([[1, 1, 2, 2], [0, 0, 0, 2], [7, 0, 0, 7]], np.uint8)
    found = objects_of(mask)
    assert found.numbers.tolist() == [1, 2, 7]
    np.testing.assert_allclose(found.centres, [[0, 0.5], [1 / 3, 8 / 3], [2, 1.5]])


def test_a_mask_of_background_has_no_objects() -> None:
    found = objects_of(np.zeros((4, 5), np.uint16))
    assert (found.numbers.shape, found.centres.shape) == ((0,), (0, 2))


@pytest.mark.parametrize(
    ("number", "dtype"), [(-1, "int8"), (-(2**63), "int64"), (2**63, "uint64"), (2**64 - 1, "uint64")]
)
def test_numbers_that_cannot_be_of_an_object_are_refused(number: int, dtype: str) -> None:
    mask = np.ones((4, 5), dtype)
    mask[2, 3] = number
    with pytest.raises(SourceError, match=f"object {number}; expected numbers from 1"):
        objects_of(mask)


@pytest.mark.skipif(not NUCLEI.is_dir(), reason=f"real masks are not in {NUCLEI}")
def test_centres_of_real_nuclei_are_the_means_of_their_pixels() -> None:
    for path in sorted(NUCLEI.glob("*.png"))[:3]:
        mask = np.asarray(Image.open(path))[..., 0]
        found, expected = objects_of(mask), by_loops(mask)
        assert found.numbers.tolist() == list(expected) != []
        np.testing.assert_allclose(found.centres, list(expected.values()), rtol=1e-12)


# ---- masks by the names of their files ------------------------------------------------------------------------------


def archive_of(root: Path, *places: Place) -> Archive:
    fields = tuple(Field(*place, planes=((Plane("a.tif"),),)) for place in places)
    return Archive(open_files(root), "study", "source", (), fields)


def write_masks(root: Path, *names: str) -> Path:
    """Masks of 4 x 6 pixels, each with its number among them as its only object."""
    for number, name in enumerate(names, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((4, 6), np.uint16)
        mask[1:3, 2:5] = number
        tifffile.imwrite(root / name, mask)
    return root


def numbers_in(masks: Masks, place: Place, shape: tuple[int, int] = (4, 6)) -> list[int]:
    return objects_of(read_mask(masks, masks.planes[place], shape)).numbers.tolist()


@pytest.mark.parametrize(
    "said", ["{plate}/{well}_s{field}_mask.tif", "masks/{plate}/{well}_s{field}_mask.tif", "{well}_s{field}_{*}.tif"]
)
@pytest.mark.parametrize("root", ["relative", "absolute"])
def test_a_pattern_gives_each_field_its_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, root: str
) -> None:
    write_masks(tmp_path / "masks", "p/A01_s1_mask.tif", "p/A01_s02_mask.tif", "p/B12_s1_mask.tif")
    folder = tmp_path if said.startswith("masks") else tmp_path / "masks"
    monkeypatch.chdir(folder)
    archive = archive_of(tmp_path, A1, ("p", "A1", "2", 0, 0), ("p", "C3", "1", 0, 0))
    masks = find_masks(said if root == "relative" else f"{folder}/{said}", archive, open_files)
    assert set(masks.planes) == {A1, ("p", "A1", "2", 0, 0)}
    assert (numbers_in(masks, A1), numbers_in(masks, ("p", "A1", "2", 0, 0))) == ([1], [2])


@pytest.mark.parametrize(
    ("said", "root"),
    [
        ("{well}.tif", "."),
        ("a/b/{well}.tif", "a/b"),
        ("a/x{plate}/b/{well}.tif", "a"),
        ("/{well}.tif", "/"),
        ("https://host/a/{plate}/{well}.tif", "https://host/a"),
        ("s3://bucket/{plate}/{well}.tif", "s3://bucket"),
    ],
)
def test_the_folder_ends_before_the_first_placeholder(tmp_path: Path, said: str, root: str) -> None:
    write_masks(tmp_path, "A1.tif", "p/A1.tif", "xp/b/A1.tif")
    asked = []

    def open_root(root: str) -> Any:
        asked.append(root)
        return open_files(tmp_path / "p" if "plate" not in said else tmp_path)

    assert list(find_masks(said, archive_of(tmp_path, A1), open_root).planes) == [A1]
    assert asked == [root]


def test_a_mask_holds_for_all_z_and_t_that_its_name_does_not_tell(tmp_path: Path) -> None:
    write_masks(tmp_path, "a/A1.tif", "z/A1_z3.tif", "z/A1_z4.tif", "t/A1_z3_t1.tif")
    places: list[Place] = [("p", "A1", "1", z, t) for t in (0, 1) for z in (3, 4, 5)]
    archive = archive_of(tmp_path, *places)

    def found(said: str) -> dict[Place, list[int]]:
        masks = find_masks(f"{tmp_path}/{said}", archive, open_files)
        return {place: numbers_in(masks, place) for place in masks.planes}

    assert found("a/{well}.tif") == {place: [1] for place in places}
    assert found("z/{well}_z{z}.tif") == {place: [place[3] - 1] for place in places if place[3] < 5}
    assert found("t/{well}_z{z}_t{t}.tif") == {("p", "A1", "1", 3, 1): [4]}


def test_masks_of_slices_do_not_fit_their_maximum(tmp_path: Path) -> None:
    write_masks(tmp_path, "A1_z0.tif", "A1_z1.tif", "all/A1.tif")
    layout = tiff_folder.find(open_files(tmp_path), "{well}_z{z}.tif", plate="p")
    archive = Archive(open_files(tmp_path), "study", "source", layout.channels, layout.fields)
    maximum = select(archive, Selection(z="max"))
    with pytest.raises(SourceError, match="fields are a maximum"):
        find_masks(f"{tmp_path}/{{well}}_z{{z}}.tif", maximum, open_files)
    assert list(find_masks(f"{tmp_path}/all/{{well}}.tif", maximum, open_files).planes) == [A1]


@pytest.mark.parametrize(
    ("said", "said_of_it"),
    [
        ("{well}_s{field}_c{channel}.tif", r"write {\*}, or one's name, for {channel}"),
        ("{well}_s{feld}.tif", "{feld} is not a placeholder; did you mean 'field'"),
        ("s{field}.tif", "does not tell the well"),
        ("{well}_s{field}_mask.tif", r"matches none of 2 TIFF files .* one of them is 'A02_s1.tif'"),
        ("{well}{*}.tif", "A01_s1.tif is of plate p well A1 field 1 z 0 t 0, the archive has plate p well B7"),
        ("nuclei", "has no placeholder, and only OME-Zarr has label images by name; expected a pattern"),
    ],
)
def test_masks_that_are_not_there_are_refused_with_the_reason(tmp_path: Path, said: str, said_of_it: str) -> None:
    write_masks(tmp_path, "A01_s1.tif", "A02_s1.tif")
    said = f"{tmp_path}/{said}" if "{" in said else said
    with pytest.raises(SourceError, match=said_of_it):
        find_masks(said, archive_of(tmp_path, ("p", "B7", "1", 0, 0)), open_files)


def test_a_pattern_without_the_plate_is_of_the_only_one(tmp_path: Path) -> None:
    write_masks(tmp_path, "A1.tif", "q/A1.tif")
    assert list(find_masks(f"{tmp_path}/q/{{well}}.tif", archive_of(tmp_path, A1), open_files).planes) == [A1]
    two = archive_of(tmp_path, A1, ("q", "A1", "1", 0, 0))
    with pytest.raises(SourceError, match=r"has no {plate}, and the archive has 2 plates: p, q"):
        find_masks(f"{tmp_path}/q/{{well}}.tif", two, open_files)
    found = find_masks(f"{tmp_path}/{{plate}}/{{well}}.tif", two, open_files)
    assert list(found.planes) == [("q", "A1", "1", 0, 0)]


def test_two_masks_of_one_field_are_refused(tmp_path: Path) -> None:
    archive = archive_of(tmp_path, A1)
    write_masks(tmp_path / "wells", "A1.tif", "A01.tif")
    with pytest.raises(SourceError, match=r"A01.tif and A1.tif are both plate p well A1 field 1"):
        find_masks(f"{tmp_path}/wells/{{well}}.tif", archive, open_files)
    write_masks(tmp_path / "fields", "A1_1.tif", "A1_01.tif")
    with pytest.raises(SourceError, match="are one by their numbers"):
        find_masks(f"{tmp_path}/fields/{{well}}_{{field}}.tif", archive, open_files)


# ---- what a mask holds ----------------------------------------------------------------------------------------------


def tiff_mask(tmp_path: Path, pixels: Array, **how: Any) -> Masks:
    tifffile.imwrite(tmp_path / "A1.tif", pixels, **how)
    return find_masks(f"{tmp_path}/{{well}}.tif", archive_of(tmp_path, A1), open_files)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("how", [{}, {"compression": "zlib"}, {"byteorder": ">"}, {"bigtiff": True, "tile": (16, 16)}])
def test_masks_of_all_integers_are_read_as_they_are(tmp_path: Path, dtype: str, how: dict[str, Any]) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (33, 45), dtype, endpoint=True)
    masks = tiff_mask(tmp_path, pixels, **how)
    found = read_mask(masks, masks.planes[A1], (33, 45))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "bool"])
def test_masks_of_no_integers_are_refused(tmp_path: Path, dtype: str) -> None:
    masks = tiff_mask(tmp_path, np.ones((4, 6), dtype))
    with pytest.raises(SourceError, match=f"A1.tif has pixels of {dtype}; a mask has whole numbers"):
        read_mask(masks, masks.planes[A1], (4, 6))


def test_a_mask_of_another_shape_is_refused_before_it_is_read(tmp_path: Path) -> None:
    masks = tiff_mask(tmp_path, np.ones((6, 4), np.uint8))
    with pytest.raises(SourceError, match=r"A1.tif is 6 x 4 pixels, its field is 4 x 6"):
        read_mask(masks, masks.planes[A1], (4, 6))


def test_a_mask_that_is_gone_damaged_or_of_many_pages_is_refused(tmp_path: Path) -> None:
    masks = tiff_mask(tmp_path, np.ones((3, 4, 6), np.uint8), photometric="minisblack", metadata=None)
    with pytest.raises(SourceError, match="several pages; expected one plane"):
        read_mask(masks, masks.planes[A1], (4, 6))
    masks = tiff_mask(tmp_path, np.ones((40, 60), np.uint8))
    whole = (tmp_path / "A1.tif").read_bytes()
    for end in (0, 10, len(whole) - 100):
        (tmp_path / "A1.tif").write_bytes(whole[:end])
        with pytest.raises(SourceError, match=r"A1\.tif"):
            read_mask(masks, masks.planes[A1], (40, 60))
    (tmp_path / "A1.tif").unlink()
    with pytest.raises(SourceMissing, match=r"A1\.tif"):
        read_mask(masks, masks.planes[A1], (40, 60))


# ---- label images of OME-Zarr ---------------------------------------------------------------------------------------

TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


def put_group(group: Path, about: dict[str, Any], version: str) -> None:
    group.mkdir(parents=True, exist_ok=True)
    if version == "0.5":
        attributes = {"ome": {"version": version, **about}}
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (group / "zarr.json").write_text(json.dumps(document))
    else:
        (group / ".zgroup").write_text('{"zarr_format": 2}')
        (group / ".zattrs").write_text(json.dumps(about))


def put_image(group: Path, pixels: Array, axes: str, version: str = "0.4", path: str = "0") -> None:
    named = [{"name": axis, "type": TYPES[axis]} for axis in axes]
    multiscale: dict[str, Any] = {"axes": named, "datasets": [{"path": path}, {"path": "half"}]}
    if version == "0.4":
        multiscale["version"] = version
    put_group(group, {"multiscales": [multiscale]}, version)
    separator = {} if version == "0.5" else {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    chunks = (*(1 for _ in pixels.shape[:-2]), *pixels.shape[-2:])
    array = zarr.create_array(
        str(group / path), shape=pixels.shape, dtype=pixels.dtype, chunks=chunks,
        zarr_format=3 if version == "0.5" else 2, overwrite=True, **separator,
    )  # fmt: skip
    array[...] = pixels


def zarr_archive(root: Path) -> Archive:
    open_zarr.cache_clear()  # tests change arrays in place
    layout = ome_zarr.find(open_files(root), "", "p")
    return Archive(open_files(root), "study", "source", layout.channels, layout.fields, layout.format)


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 100, shape, np.uint16)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("path", ["0", "scale/full"])
def test_the_fields_of_a_plate_have_the_label_images_beside_their_images(
    tmp_path: Path, version: str, path: str
) -> None:
    wells = [{"path": "A/1"}, {"path": "B/2"}]
    put_group(tmp_path, {"plate": {"wells": wells}}, version)
    masks = {}
    for well in ("A/1", "B/2"):
        put_group(tmp_path / well, {"well": {"images": [{"path": "0"}, {"path": "1"}]}}, version)
        for image in ("0", "1"):
            group = tmp_path / well / image
            put_image(group, random(2, 4, 6), "cyx", version, path)
            if (well, image) != ("B/2", "0"):
                mask = random(4, 6, seed=len(masks))
                put_image(group / "labels" / "nuclei", mask, "yx", version, path)
                masks["p", well.replace("/", ""), str(int(image) + 1), 0, 0] = mask
    found = find_masks("nuclei", zarr_archive(tmp_path), open_files)
    assert set(found.planes) == set(masks)
    assert found.planes[A1] == Plane(f"A/1/0/labels/nuclei/{path}")
    for place, mask in masks.items():
        np.testing.assert_array_equal(read_mask(found, found.planes[place], (4, 6)), mask)


@pytest.mark.parametrize(
    ("axes", "shape", "index"),
    [
        ("yx", (4, 6), lambda z, t: ()),
        ("zyx", (3, 4, 6), lambda z, t: (z,)),
        ("tyx", (2, 4, 6), lambda z, t: (t,)),
        ("cyx", (1, 4, 6), lambda z, t: (0,)),
        ("tczyx", (2, 1, 3, 4, 6), lambda z, t: (t, 0, z)),
        ("ztyx", (3, 2, 4, 6), lambda z, t: (z, t)),
        ("tczyx", (2, 1, 1, 4, 6), lambda z, t: (t, 0, 0)),
        ("tzyx", (1, 3, 4, 6), lambda z, t: (0, z)),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_label_image_has_the_slices_of_its_image_or_one_for_all(
    tmp_path: Path, axes: str, shape: tuple[int, ...], index: Any, version: str
) -> None:
    put_image(tmp_path, random(2, 2, 3, 4, 6), "tczyx", version)
    labels = random(*shape).astype(">i4" if version == "0.4" else "int32")
    put_image(tmp_path / "labels" / "cells", labels, axes, version)
    archive = zarr_archive(tmp_path)
    masks = find_masks("cells", archive, open_files)
    assert [*masks.planes] == [field.place for field in archive.fields]
    for place in masks.planes:
        found = read_mask(masks, masks.planes[place], (4, 6))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, labels[index(*place[3:])])


@pytest.mark.parametrize(
    ("axes", "shape", "said"),
    [
        ("cyx", (2, 4, 6), "labels/cells/0 has c of size 2; expected 1"),
        ("zyx", (2, 4, 6), r"labels/cells/0 has z of size 2; expected 1, or as 0 has it \(tczyx\)"),
        ("tyx", (2, 4, 6), r"labels/cells/0 has t of size 2; expected 1, or as 0 has it \(tczyx\)"),
        ("xy", (4, 6), "has axes xy"),
    ],
)
def test_a_label_image_that_does_not_fit_is_refused(
    tmp_path: Path, axes: str, shape: tuple[int, ...], said: str
) -> None:
    put_image(tmp_path, random(3, 2, 3, 4, 6), "tczyx")
    put_image(tmp_path / "labels" / "cells", random(*shape), axes)
    with pytest.raises(SourceError, match=said):
        find_masks("cells", zarr_archive(tmp_path), open_files)


def test_slices_of_a_label_image_need_slices_of_the_image(tmp_path: Path) -> None:
    put_image(tmp_path, random(3, 4, 6), "zyx")
    put_image(tmp_path / "labels" / "cells", labels := random(3, 4, 6), "zyx")
    put_image(tmp_path / "labels" / "flat", random(4, 6), "yx")
    archive = zarr_archive(tmp_path)
    with pytest.raises(SourceError, match="has labels for each z, not for the maximum over all: choose one"):
        find_masks("cells", select(archive, Selection(z="max")), open_files)
    assert list(find_masks("flat", select(archive, Selection(z="max")), open_files).planes) == [A1]
    middle = find_masks("cells", select(archive, Selection(z="middle")), open_files)
    np.testing.assert_array_equal(read_mask(middle, middle.planes["p", "A1", "1", 1, 0], (4, 6)), labels[1])
    put_image(tmp_path, random(4, 6), "yx")
    with pytest.raises(SourceError, match="z of size 3; expected 1, or as 0 has it"):
        find_masks("cells", zarr_archive(tmp_path), open_files)


def test_a_label_image_of_another_height_or_of_floats_is_refused(tmp_path: Path) -> None:
    put_image(tmp_path, random(4, 6), "yx")
    put_image(tmp_path / "labels" / "half", random(2, 3), "yx")
    put_image(tmp_path / "labels" / "floats", np.ones((4, 6), np.float32), "yx")
    for name, said in (("half", "/0 is 2 x 3 pixels, its field is 4 x 6"), ("floats", "/0 has pixels of float32")):
        masks = find_masks(name, zarr_archive(tmp_path), open_files)
        with pytest.raises(SourceError, match=f"labels/{name}{said}"):
            read_mask(masks, masks.planes[A1], (4, 6))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_label_image_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path, version: str) -> None:
    put_image(tmp_path, random(4, 6), "yx", version)
    with pytest.raises(SourceError, match=r"no image has a label image 'nuclei'; .* has none"):
        find_masks("nuclei", zarr_archive(tmp_path), open_files)
    put_group(tmp_path / "labels", {"labels": ["cells", 7, "a\nb"]}, version)
    put_image(tmp_path / "labels" / "cells", random(4, 6), "yx", version)
    with pytest.raises(SourceError, match=r"no image has a label image 'nuclei'; .* has cells$"):
        find_masks("nuclei", zarr_archive(tmp_path), open_files)


@pytest.mark.parametrize("name", ["..", "../0", "a//b", "/etc", "", "a\\b", "x" * 300])
def test_a_name_that_leads_out_of_the_image_is_refused(tmp_path: Path, name: str) -> None:
    put_image(tmp_path, random(4, 6), "yx")
    with pytest.raises(SourceError, match="path"):
        find_masks(name, zarr_archive(tmp_path), open_files)


def test_a_plain_array_has_no_label_images_and_a_pattern_fits_any_archive(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 6), dtype="uint16", zarr_format=2)
    archive = zarr_archive(tmp_path / "a.zarr")
    with pytest.raises(SourceError, match="is in no OME-Zarr image"):
        find_masks("nuclei", archive, open_files)
    write_masks(tmp_path / "masks", "A1.tif")
    assert numbers_in(find_masks(f"{tmp_path}/masks/{{well}}.tif", archive, open_files), A1) == [1]


@pytest.mark.skipif(not SEGMENTED.is_dir(), reason=f"the real label image is not in {SEGMENTED}")
def test_a_real_label_image_is_read_as_zarr_reads_it(tmp_path: Path) -> None:
    root = shutil.copytree(SEGMENTED / "image.ome.zarr", tmp_path / "image.ome.zarr")
    shutil.copytree(SEGMENTED / "segmentation.ome.zarr", root / "labels" / "cells")
    archive = zarr_archive(root)
    masks = find_masks("cells", archive, open_files)
    assert [*masks.planes] == [("p", "A1", "1", 0, t) for t in range(10)]
    expected = np.asarray(zarr.open_array(str(root / "labels" / "cells" / "s0"), mode="r"))
    for place in (("p", "A1", "1", 0, 0), ("p", "A1", "1", 0, 7)):
        mask = read_mask(masks, masks.planes[place], (592, 1280))
        np.testing.assert_array_equal(mask, expected[place[4]])
        objects = objects_of(mask)
        assert objects.numbers.tolist() == np.unique(expected[place[4]])[1:].tolist() != []
        for number, centre in zip(objects.numbers, objects.centres, strict=True):
            np.testing.assert_allclose(centre, np.argwhere(mask == number).mean(axis=0), rtol=1e-12)
