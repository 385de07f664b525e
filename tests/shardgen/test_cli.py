import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

import bie_stream
from shardgen.cli import app
from shardgen.codec_choice import Choice

PATTERN = "{well}_s{field}_w{channel}.tif"
Shardgen = Callable[..., subprocess.CompletedProcess[str]]


def empty(raw: Path) -> list[str]:
    for file in raw.iterdir():
        file.unlink()
    return []


def mismatched(raw: Path) -> list[str]:
    return ["--pattern", "{plate}-{well}.tif"]


def lacking(raw: Path) -> list[str]:
    (raw.parent / "wells.csv").write_text("well,x\nA1,1\n")
    return ["--labels", str(raw.parent / "wells.csv")]


def doubled(raw: Path) -> list[str]:
    with (raw.parent / "wells.csv").open("a") as file:
        file.write("A01,taxol,2\n")
    return ["--labels", str(raw.parent / "wells.csv")]


def truncated(raw: Path) -> list[str]:
    file = raw / "B02_s1_w2.tif"
    file.write_bytes(file.read_bytes()[:-50])
    return []


def of_other_shape(raw: Path) -> list[str]:
    tifffile.imwrite(raw / "B02_s1_w2.tif", np.zeros((12, 17), np.uint16), metadata=None)
    return []


def of_other_dtype(raw: Path) -> list[str]:
    tifffile.imwrite(raw / "B02_s1_w2.tif", np.zeros((12, 16), np.uint8), metadata=None)
    return []


def unknown_channel(raw: Path) -> list[str]:
    return ["--channels", "1=DNA,7=Actin"]


def assert_refused(result: subprocess.CompletedProcess[str], out: Path, said: str) -> None:
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    assert said in lines[0]
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not (out / "dataset.json").exists()
    assert list(out.rglob("*.partial")) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (empty, "holds no TIFF"), (mismatched, "matches none of 20"), (lacking, "lacks 4 of 5 wells"),
        (doubled, "twice"), (truncated, "B02_s1_w2.tif is damaged"), (of_other_shape, "(12, 17)"),
        (of_other_dtype, "uint8"), (unknown_channel, "no channel '7'"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_one_line_and_leaves_no_dataset(
    tmp_path: Path, raw: Path, shardgen: Shardgen, spoil: Callable[[Path], list[str]], said: str
) -> None:
    out = tmp_path / "out"
    more = spoil(raw)
    assert_refused(shardgen("build", raw, "--pattern", PATTERN, "--workers", 1, "--out", out, *more), out, said)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_a_build_with_one_line(
    tmp_path: Path, small_disk: Path, write_archive: Callable[..., object], shardgen: Shardgen
) -> None:
    write_archive(tmp_path / "raw", shape=(256, 256))
    out = small_disk / "out"
    assert_refused(
        shardgen("build", tmp_path / "raw", "--pattern", PATTERN, "--workers", 1, "--out", out), out, "No space left"
    )


def ran(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_list_names_the_studies() -> None:
    assert "demo" in ran("list")


def test_a_plan_tells_what_would_be_built_and_writes_nothing(raw: Path) -> None:
    before = sorted(raw.parent.rglob("*"))
    said = dict(
        line.split(None, 1) for line in ran("plan", raw, "--pattern", PATTERN).splitlines() if len(line.split()) == 2
    )
    assert (said["fields"], said["planes"], said["samples"]) == ("10", "20", "10")
    assert said["payload_bytes"] == str(20 * 12 * 16 * 2)
    assert sorted(raw.parent.rglob("*")) == before


def test_a_built_dataset_can_be_described_and_looked_at(tmp_path: Path, raw: Path) -> None:
    out = tmp_path / "out"
    ran(
        "build",
        raw,
        "--pattern",
        PATTERN,
        "--channels",
        "2=Actin,1=DNA",
        "--licence",
        "CC0",
        "--workers",
        1,
        "--out",
        out,
    )
    assert "CC0" in ran("info", out)
    assert "Actin" in ran("info", out)
    assert json.loads(ran("info", out, "--json")) == json.loads((out / "dataset.json").read_text())
    ran("preview", out, "--out", tmp_path / "sheet.png", "--rows", 3)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert (sheet.format, sheet.size) == ("PNG", (2 * (160 + 4) + 4, 3 * (160 + 4 + 14) + 14 + 4))


def test_a_codec_that_was_measured_is_kept_when_the_build_goes_on(
    tmp_path: Path, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("blosc2", reason="the extra `codecs` is not installed")
    choices = iter(["blosc2", "npy"])  # as on a machine whose second measurement comes out otherwise
    monkeypatch.setattr(
        "shardgen.codec_choice.decide", lambda table: Choice(next(choices), "as the test says", table)
    )  # fmt: skip
    words = ("build", raw, "--pattern", PATTERN, "--workers", 1, "--codec", "auto", "--out", tmp_path / "out")
    ran(*words)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["codec"] == "blosc2"
    (tmp_path / "out" / "dataset.json").unlink()
    ran(*words)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == manifest


@pytest.mark.parametrize("codec", ["tif", "jph", "blosc2"])
def test_every_codec_gives_back_the_pixels_of_the_archive(
    tmp_path: Path, write_archive: Callable[..., dict[tuple[str, int, int], np.ndarray[Any, Any]]], codec: str
) -> None:
    pytest.importorskip("imagecodecs", reason="the extra `codecs` is not installed")
    pixels = write_archive(tmp_path / "raw")
    ran("build", tmp_path / "raw", "--pattern", PATTERN, "--codec", codec, "--out", tmp_path / "out")
    ran("verify", tmp_path / "out")
    dataset = bie_stream.open(tmp_path / "out")
    for number, row in enumerate(dataset.table.to_pylist()):
        well = f"{row['well'][0]}{int(row['well'][1:]):02d}"
        for channel in (1, 2):
            np.testing.assert_array_equal(dataset[number][channel - 1], pixels[well, int(row["field"]), channel])


def test_an_unknown_codec_is_refused_with_those_that_are_known(tmp_path: Path, raw: Path) -> None:
    words = ["build", str(raw), "--pattern", PATTERN, "--codec", "blosc", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 1
    assert "did you mean 'blosc2'" in result.stderr


def test_fields_that_were_left_out_are_read_again_when_asked(tmp_path: Path, raw: Path) -> None:
    whole = (raw / "B02_s1_w2.tif").read_bytes()
    (raw / "B02_s1_w2.tif").write_bytes(whole[:-50])
    words = ("build", raw, "--pattern", PATTERN, "--workers", 1, "--max-rejects", 1, "--shard-mb", 1)
    ran(*words, "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["rejected"] == 1
    (raw / "B02_s1_w2.tif").write_bytes(whole)
    ran(*words, "--out", tmp_path / "out", "--retry-rejects", "--report", tmp_path / "report.json")
    ran(*words, "--out", tmp_path / "clean")
    for path in sorted((tmp_path / "clean").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "clean")).read_bytes()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["rejected"], report["shards_written"]) == (0, 1)
