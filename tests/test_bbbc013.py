"""The whole line on a real plate, in short: BBBC013, two processes, few steps. The long form is in the README."""

import json
import sys
from pathlib import Path

import pytest
from command_line import ROOT, command

PLATE = ROOT.parent / "shared" / "data" / "bbbc013_fkhr_plate"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLATE.is_dir(), reason="the BBBC013 plate is not beside this checkout"),
]


def test_raw_plate_to_label_table(tmp_path: Path) -> None:
    fields, tiles, run, table, report = (tmp_path / n for n in ("fields", "tiles", "run", "e.parquet", "report"))
    for out, options, samples in ((fields, [], 96), (tiles, ["--tile", "128"], 2400)):
        build = command(
            "-m", "shardgen", "build", PLATE, "--pattern", "Channel{channel}-{*}-{row}-{column}.tif", "--channels",
            "1=FKHR-GFP,2=DNA", "--plate", "1049", "--labels", PLATE / "wells.csv", *options, "--out", out,
        )  # fmt: skip
        assert build.returncode == 0, build.stderr
        assert f"{samples:,} samples" in build.stdout
        assert command("-m", "shardgen", "verify", out).returncode == 0
    settings = {
        "data.path": fields, "run_dir": run, "training.steps": 40, "training.log_every": 10,
        "training.image_every": 40, "training.checkpoint_every": 40, "schedule.warmup_steps": 5,
        "model.quantiser.codes": 64,
    }  # fmt: skip
    train = command(
        Path(sys.executable).with_name("deepspeed"), "--master_port", "29631", "train.py",
        "--config", "train/configs/bbbc013_vqvae.yaml",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
        env={"LOCAL_SIZE": "2"},
    )  # fmt: skip
    assert train.returncode == 0, train.stderr
    embed = command("-m", "train", "embed", "--run", run, "--data", tiles, "--out", table)
    assert embed.returncode == 0, embed.stderr
    evaluate = command(
        "-m", "train", "evaluate", "--embeddings", table, "--label", "control", "--out", report, "--folds", "4"
    )
    assert evaluate.returncode == 0, evaluate.stderr
    metrics = json.loads((report / "metrics.json").read_text())
    trained, intensity = (metrics[n]["balanced_accuracy"] for n in ("trained embedding", "intensity mean + std"))
    assert trained > 0.9
    assert trained > intensity
    assert metrics["permuted labels"]["balanced_accuracy"] < 0.7
