from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import tifffile

import bie_stream
from bie_stream.errors import DatasetError, DatasetNotFound, SampleError
from bie_stream.shards import tar_path


def _change_last_byte(root: Path, sample: int) -> None:
    """Another byte at the end of a sample's payload; sizes stay."""
    row = bie_stream.open(root).table.slice(sample, 1).to_pylist()[0]
    with tar_path(root, f"{row['shard']:06d}").open("rb+") as file:
        file.seek(row["offset"] + row["size"] - 1)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def test_each_sample_is_what_the_microscope_wrote(plate_dataset: Path, plate_archive: Path) -> None:
    plates = bie_stream.open(plate_dataset)
    assert len(plates) == 10
    for i, row in enumerate(plates.table.to_pylist()):
        name = f"{row['plate']}_{row['well'][0]}{int(row['well'][1:]):02d}_s{row['field']}"
        planes = np.stack([tifffile.imread(plate_archive / f"{name}_w{w}.tif") for w in (1, 2, 3)])
        assert plates[i].dtype == planes.dtype
        np.testing.assert_array_equal(plates[i], planes)


def test_channels_are_taken_by_name_in_the_order_asked(plate_dataset: Path) -> None:
    every = bie_stream.open(plate_dataset)
    some = bie_stream.open(plate_dataset, channels=["Actin", "DNA"])
    assert every.channels == ("DNA", "Protein", "Actin")
    assert some.channels == ("Actin", "DNA")
    np.testing.assert_array_equal(some[3], every[3][[2, 0]])
    assert some.statistics == (every.statistics[2], every.statistics[0])


def test_a_channel_that_is_absent_is_all_0_and_has_no_statistics(plate_dataset: Path) -> None:
    every = bie_stream.open(plate_dataset)
    some = bie_stream.open(plate_dataset, channels=["ER", "Actin", "Mito", "DNA"], absent_ok=True)
    assert some.channels == ("ER", "Actin", "Mito", "DNA")
    assert some.channel_indices == (-1, 2, -1, 0)
    assert some.present == (False, True, False, True)
    assert some.statistics == (None, every.statistics[2], None, every.statistics[0])
    for plate, of in every.plates.items():
        assert some.plates[plate] == (None, of[2], None, of[0])
    for dataset, sample in [(some, 3), (some.select(np.arange(10) == 3), 0)]:
        assert dataset[sample].dtype == every[3].dtype
        np.testing.assert_array_equal(dataset[sample][[1, 3]], every[3][[2, 0]])
        assert not dataset[sample][[0, 2]].any()
        assert dataset.present == (False, True, False, True)


def test_absent_channels_change_nothing_where_all_are_there(plate_dataset: Path) -> None:
    plain, asked = (bie_stream.open(plate_dataset, channels=["Actin", "DNA"], absent_ok=ok) for ok in (False, True))
    assert asked.present == plain.present == (True, True)
    assert asked.statistics == plain.statistics
    np.testing.assert_array_equal(asked[3], plain[3])


def test_statistics_are_those_of_all_pixels(plate_dataset: Path) -> None:
    plates = bie_stream.open(plate_dataset)
    pixels = np.stack([plates[i] for i in range(len(plates))]).astype(np.float64)
    for c, statistics in enumerate(plates.statistics):
        assert statistics is not None
        assert statistics.mean == pytest.approx(pixels[:, c].mean(), rel=1e-9)
        assert statistics.std == pytest.approx(pixels[:, c].std(), rel=1e-9)
        assert (statistics.minimum, statistics.maximum) == (pixels[:, c].min(), pixels[:, c].max())


def test_splits_are_disjoint_and_together_the_whole(plate_dataset: Path) -> None:
    every = bie_stream.open(plate_dataset)
    splits = {split: bie_stream.open(plate_dataset, split=split) for split in ("train", "val", "test")}
    keys = Counter(key for split in splits.values() for key in split.table["key"].to_pylist())
    assert keys == Counter(every.table["key"].to_pylist())
    assert {name: len(split) for name, split in splits.items()} == every.manifest.splits
    wells = [set(split.table["well"].to_pylist()) for split in splits.values()]
    assert not wells[0] & wells[1]
    assert not wells[0] & wells[2]
    assert not wells[1] & wells[2]


def test_select_takes_an_expression_or_a_mask(plate_dataset: Path) -> None:
    every = bie_stream.open(plate_dataset, channels=["Protein"])
    by_label = every.select(pc.field("phenotype") == "speckled")
    rows = [i for i, label in enumerate(every.table["phenotype"].to_pylist()) if label == "speckled"]
    assert len(by_label) == len(rows) == 2
    assert by_label.channels == ("Protein",)
    np.testing.assert_array_equal(by_label[1], every[rows[1]])
    mask = np.arange(10) % 3 == 0
    by_mask = every.select(mask)
    assert by_mask.table["key"].to_pylist() == every.table["key"].to_numpy()[mask].tolist()
    np.testing.assert_array_equal(by_mask.select(np.array([False, True, False, False]))[0], every[3])


def test_nothing_may_be_selected(plate_dataset: Path) -> None:
    assert len(bie_stream.open(plate_dataset).select(pc.field("well") == "P24")) == 0


def test_a_dataset_is_indexed_like_a_sequence(plate_dataset: Path) -> None:
    plates = bie_stream.open(plate_dataset)
    np.testing.assert_array_equal(plates[-1], plates[9])
    for outside in (10, -11):
        with pytest.raises(IndexError):
            plates[outside]
    assert len(list(plates)) == 10


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"channels": ["DNA", "Protien"]}, "no channel 'Protien'; did you mean 'Protein'"),
        ({"channels": ["GFP"]}, "no channel 'GFP'; known: DNA, Protein, Actin"),
        ({"channels": ["GFP", "ER"], "absent_ok": True}, "no channel 'GFP'; known: DNA, Protein, Actin"),
        (
            {"channels": ["DNA", "actin "], "absent_ok": True},
            "no channel 'actin ' but 'Actin'; ask for it by that name",
        ),
        ({"channels": ["DNA", "ER", "ER"], "absent_ok": True}, "each channel once"),
        ({"channels": ["DNA", "DNA"]}, "each channel once"),
        ({"channels": []}, "at least one"),
        ({"split": "trian"}, "no split 'trian'; did you mean 'train'"),
    ],
)
def test_a_wrong_name_is_answered_in_one_line_with_the_nearest(
    plate_dataset: Path, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message.replace("?", r"\?")) as caught:
        bie_stream.open(plate_dataset, **asked)
    assert "\n" not in str(caught.value)


def test_no_dataset_is_also_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFound):
        bie_stream.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        bie_stream.open(tmp_path / "nowhere")


def test_a_missing_shard_is_found_when_the_dataset_is_opened(own_plate_dataset: Path) -> None:
    tar_path(own_plate_dataset, "000001").unlink()
    with pytest.raises(DatasetError, match=r"000001\.tar is missing"):
        bie_stream.open(own_plate_dataset)


def test_a_shard_cut_short_is_found_when_the_dataset_is_opened(own_plate_dataset: Path) -> None:
    tar = tar_path(own_plate_dataset, "000001")
    with tar.open("rb+") as file:
        file.truncate(5000)
    with pytest.raises(DatasetError, match="has 5000 bytes, the manifest says"):
        bie_stream.open(own_plate_dataset)


@pytest.mark.parametrize("damage", ["missing", "cut", "of another shard"])
def test_a_damaged_table_is_found_when_the_dataset_is_opened(own_plate_dataset: Path, damage: str) -> None:
    table = tar_path(own_plate_dataset, "000002").with_suffix(".parquet")
    if damage == "missing":
        table.unlink()
    elif damage == "cut":
        table.write_bytes(table.read_bytes()[:-20])
    else:
        table.write_bytes(tar_path(own_plate_dataset, "000000").with_suffix(".parquet").read_bytes())
    with pytest.raises(DatasetError, match="000002"):
        bie_stream.open(own_plate_dataset)


def test_a_changed_byte_is_found_when_the_sample_is_read_and_each_time(own_plate_dataset: Path) -> None:
    _change_last_byte(own_plate_dataset, 4)
    plates = bie_stream.open(own_plate_dataset)
    key = plates.table["key"][4].as_py()
    for _ in range(2):
        with pytest.raises(SampleError, match=f"sample {key} in shard 00000. of .* has changed"):
            plates[4]
    assert plates[3].shape == plates[5].shape == (3, 64, 64)


def test_a_shard_that_vanishes_after_opening_is_a_sample_error(own_plate_dataset: Path) -> None:
    plates = bie_stream.open(own_plate_dataset)
    tar_path(own_plate_dataset, "000000").unlink()
    with pytest.raises(SampleError, match="cannot be read"):
        plates[0]
