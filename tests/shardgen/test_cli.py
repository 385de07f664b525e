import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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
        shardgen("build", tmp_path / "raw", "--pattern", PATTERN, "--workers", 1, "--out", out),
        out,
        f"{out}: No space left on device; make room",
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "demo", "--chanels", "DNA"], "No such option: --chanels"), (["bild", "demo"], "'bild'"),
        (["build", "demo"], "Missing option '--out'"), (["plan", "demo", "--tile", "0"], "'--tile'"),
        (["plan"], "Missing argument"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_one_line_that_names_the_help(shardgen: Shardgen, words: list[str], said: str) -> None:
    result = shardgen(*words)
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert line.endswith("--help)")
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "train=0.5"], "--split train=0.5: the shares must not be below 0, and add up to 1"),
        (["--split", "train=x"], "--split 'train=x': 'x' of 'train' is not a number"),
        (["--min-signal", "1"], "--min-signal '1' should look like 'DNA=300'"),
        (["--z", "top"], "--z: 'top' is not each, max, middle or an index"),
        (["--labels", "."], "--labels . cannot be read: Is a directory"),
        (["--folds", "6"], "--folds 6 is more than there are groups"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_its_option(raw: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["plan", str(raw), "--pattern", PATTERN, *words])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1


def test_a_source_that_is_nowhere_is_refused_with_what_there_is(tmp_path: Path, raw: Path) -> None:
    def says(*words: object) -> str:
        result = CliRunner().invoke(app, list(map(str, words)))
        assert result.exit_code == 1
        return result.stderr

    assert "idr0094A (SARS-CoV-2 in Caco-2 cells, drug repurposing); idr0094B" in says("plan", "idr0094")
    assert "did you mean 'idr0036'" in says("plan", "IDR0036")
    assert "A01_s1_w1.tif is a file; give the folder" in says("plan", raw / "A01_s1_w1.tif")
    (tmp_path / "plates/one").mkdir(parents=True)
    assert "is it one of the folders in it: one/?" in says("plan", tmp_path / "plates")
    assert "'' is neither a folder nor" in says("plan", "")
    assert "--out is empty" in says("build", raw, "--pattern", PATTERN, "--out", "")
    assert "shardgen build demo --out" in says("plan", "demo")


def test_ctrl_c_says_how_to_go_on_and_nothing_half_written_stays(
    tmp_path: Path, write_archive: Callable[..., object], shardgen: Shardgen
) -> None:
    write_archive(
        tmp_path / "raw", [f"A{i:02d}" for i in range(1, 25)], fields=1, channels=1, shape=(1024, 1024), dtype="uint8"
    )
    words = [
        "build",
        tmp_path / "raw",
        "--pattern",
        PATTERN,
        "--shard-mb",
        2,
        "--workers",
        1,
        "--out",
        tmp_path / "out",
    ]
    command = [sys.executable, "-m", "shardgen", *map(str, words)]
    build = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    while build.poll() is None and not (tmp_path / "out/shards/000000.parquet").exists():
        time.sleep(0.001)
    build.send_signal(signal.SIGINT)
    _, said = build.communicate(timeout=60)
    assert (build.returncode, said.splitlines()[-1:]) == (130, ["stopped; the same command again goes on"])
    assert "Traceback" not in said
    assert not (tmp_path / "out/dataset.json").exists()
    kept = (tmp_path / "out/shards/000000.tar").stat().st_mtime_ns
    assert shardgen(*words).returncode == 0
    assert (tmp_path / "out/shards/000000.tar").stat().st_mtime_ns == kept
    assert list((tmp_path / "out").rglob("*.partial")) == []


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
    assert f"bytes of pixels              {20 * 12 * 16 * 2 / 1e3:.1f} kB\n" in ran("plan", raw, "--pattern", PATTERN)
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
        top = np.asarray(sheet)[14 : 14 + 160, 4 : 4 + 160]
    assert (top[:120] < 255).mean() > 0.9, "12 x 16 pixels are shown as 120 x 160"
    assert (top[120 + 14 :] == 255).all(), "and nothing is stretched"


def test_a_preview_is_a_png_and_the_version_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["preview", str(tmp_path), "--out", str(tmp_path / "sheet.jpg")])
    assert (result.exit_code, "ends in .png" in result.stderr) == (1, True)
    assert ran("--version") == f"{bie_stream.__version__}\n"


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


def test_nothing_that_an_archive_says_commands_the_terminal(tmp_path: Path, raw: Path) -> None:
    command, out = "\x1b[2J\x9b31m\u202e", tmp_path / "out"
    labels = tmp_path / "labels.csv"
    labels.write_text(f"well,{command}\n" + "".join(f"{well},{command}\n" for well in ("A1", "A2", "B1", "B2", "C1")))
    words = [str(raw), "--pattern", PATTERN, "--labels", str(labels), "--licence", f"CC BY-NC 4.0 {command}"]
    words += ["--study", command, "--citation", command, "--channels", f"1={command}"]

    def says(*line: object) -> str:
        result = CliRunner().invoke(app, list(map(str, line)))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert all(char.isprintable() or char in "\n\r" for char in result.output), ascii(result.output)
        return result.output

    assert "\\x1b[2J" in says("plan", *words)
    assert "no commercial use" in says("build", *words, "--out", out, "--workers", 1)
    assert "\\x1b[2J" in says("info", out)
    assert "\\u001b[2J" in says("info", out, "--json")
    assert "is not in UTF-8" in says("plan", *words, "--study", "\udcff")
    assert "no channel" in says("plan", *words, "--channels", f"{command}=x")
    path = out / "shards" / "000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, table.schema.field(0), pa.array([command] * len(table))), path)
    assert "sample \\x1b[2J" in says("verify", out)


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path, raw: Path) -> None:
    command = [sys.executable, "-m", "shardgen", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        started.stdout.close()
        assert started.stderr.read() == ""
