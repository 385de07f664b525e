"""Every command of the README runs, in order, in one shell session's folder; only sizes are made small."""

import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tifffile
from archive_server import ArchiveServer
from command_line import CPU, ROOT

from bie_stream import synth

README = (ROOT / "README.md").read_text()
# What makes a command fit for a test: fewer steps, smaller images. Nothing else is changed.
SMALL = [
    "data.batch_size=4", "data.crop=64", "model.quantiser.codes=16", "model.latent_dim=8", "model.decoder_width=8",
    "training.steps=2", "training.log_every=1", "training.image_every=2", "training.checkpoint_every=2",
    "schedule.warmup_steps=1", "schedule.cooldown_steps=0", "model.decoder=light",
]  # fmt: skip

# `make test` tells the commands it starts that they are below it; a user's shell does not.
OUTSIDE_MAKE = {name: value for name, value in CPU.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def archive() -> Iterator[ArchiveServer]:
    """IDR with one small plate of idr0093 under the study's own paths: CellVoyager files, annotation, study.txt."""
    plate = synth.Plate(name="001", wells_per_phenotype=5, fields=1, size=64)
    study, folder = "idr0093-mueller-perturbation", "20200910-rsync/001"
    metadata, images = f"/IDR/{study}/HEAD", f"/pub/databases/IDR/{study}/{folder}"
    rows, records, tree = ["Plate,Well,Gene Symbol,Control Type"], [], {}
    for well, phenotype in synth.layout(plate).items():
        rows.append(f"{plate.name},{well},{phenotype},")
        planes = synth.render(plate, well, phenotype, 1)
        for channel, plane in enumerate([*planes, planes[0]], start=1):
            name = f"001_{well[0]}{int(well[1:]):02d}_T0001F001L01A{channel:02d}Z01C{channel:02d}.tif"
            file = io.BytesIO()
            tifffile.imwrite(file, plane, metadata=None)
            tree[f"{images}/{name}"] = file.getvalue()
            records.append(
                f'<bts:MeasurementRecord bts:Type="IMG" bts:Row="{ord(well[0]) - 64}" bts:Column="{well[1:]}" '
                f'bts:TimePoint="1" bts:FieldIndex="1" bts:ZIndex="1" bts:Ch="{channel}">{name}</bts:MeasurementRecord>'
            )
    head = '<?xml version="1.0" encoding="utf-8"?><bts:MeasurementData xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0">'
    tree[f"{images}/MeasurementData.mlf"] = f"{head}{''.join(records)}</bts:MeasurementData>".encode()
    tree[f"{images}/001.wpi"] = b""
    tree[f"{metadata}/screenA/idr0093-screenA-plates.tsv"] = f"/uod/idr/filesets/{study}/{folder}/001.wpi\t001".encode()
    tree[f"{metadata}/screenA/idr0093-screenA-annotation.csv"] = "\n".join(rows).encode()
    tree[f"{metadata}/idr0093-study.txt"] = b"Study License\tCC BY 4.0\n"
    with ArchiveServer(tree) as server:
        yield server


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the code."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("train", "train.py"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(words: list[str], folder: Path, **more: str) -> None:
    scripts = str(Path(sys.executable).parent)
    environment = {**CPU, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "LOCAL_SIZE": "1", **more}
    done = subprocess.run(words, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def test_every_shell_command_of_the_readme_runs(checkout: Path, archive: ArchiveServer) -> None:
    endpoints = {f"SHARDGEN_{name.upper()}": url for name, url in archive.endpoints.items()}
    (block,) = blocks("bash")
    for line in block.splitlines():
        words = shlex.split(line)
        if words[0] == "deepspeed":
            words[1:1] = ["--master_port", "29621"]
            words += [word for setting in SMALL for word in ("--set", setting)]
        if words[0] == "python":
            words[0] = sys.executable
        run(words, checkout, **endpoints)
    for made in ("idr0093.png", "runs/idr0093.parquet", "runs/idr0093_report/report.md"):
        assert (checkout / made).stat().st_size > 100


def test_the_python_of_the_readme_runs(checkout: Path) -> None:
    (block,) = blocks("python")
    assert (checkout / "shards" / "idr0093" / "dataset.json").exists(), "the shell commands come first"
    run([sys.executable, "-c", block], checkout)


@pytest.mark.slow
def test_make_demo_ends_with_the_label_table_and_the_paths_of_its_pictures(tmp_path: Path) -> None:
    """The whole demo; only its training is cut to a few steps. The environment is the one that runs this test."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "train.py", "bie_stream", "shardgen"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "train", tmp_path / "train", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    config = tmp_path / "train/configs/demo_vqvae.yaml"
    text, replaced = re.subn(
        r"^training:.*",
        "schedule: {warmup_steps: 1}\ntraining: {steps: 4, log_every: 2, image_every: 4, checkpoint_every: 4}\n",
        config.read_text(),
        flags=re.DOTALL | re.MULTILINE,
    )
    assert replaced == 1
    config.write_text(text)
    done = subprocess.run(
        ["make", "-o", ".venv/ready", "demo"], cwd=tmp_path, env=OUTSIDE_MAKE, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| trained embedding |" in done.stdout
    pictures = [tmp_path / line for line in done.stdout.splitlines() if line.endswith(".png")][-3:]
    assert [path.name for path in pictures] == ["umap.png", "reconstruction.png", "preview.png"]
    assert all(path.stat().st_size > 1000 for path in pictures)


def test_make_test_is_the_one_check_and_the_readme_names_both_commands() -> None:
    assert "make demo" in README
    assert "make test" in README
    planned = subprocess.run(
        ["make", "-n", "test"], cwd=ROOT, env=OUTSIDE_MAKE, capture_output=True, text=True, check=True
    ).stdout
    assert [line.split()[0] for line in planned.splitlines()[-4:]] == ["ruff", "ruff", "mypy", "python"]


def test_every_folder_that_the_readme_names_is_there() -> None:
    named = re.findall(r"^\| `(\w+)/`", README, re.MULTILINE)
    assert sorted(named) == ["bench", "bie_stream", "shardgen", "tests", "train"]
    assert all((ROOT / name).is_dir() for name in named)
