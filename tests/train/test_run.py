"""`train.py` as a user runs it: processes, resume, errors, then embedding and evaluation of what it wrote."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import CPU, ROOT, command, write_config

from train.evaluate.embed import read_embeddings


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of one process."""
    folder = tmp_path_factory.mktemp("run")
    done = command("train.py", "--config", write_config(folder / "c.yaml", tiny, folder / "run"))
    assert done.returncode == 0, done.stderr
    assert "step 12/12" in done.stdout
    return folder / "run"


def test_a_run_killed_and_started_again_has_the_same_losses_to_the_last_bit(
    run: Path, tiny: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run")
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(config)], cwd=ROOT, env=CPU, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 6):
        assert time.monotonic() < deadline, "the run did not come to step 6"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = command("train.py", "--config", config)
    assert again.returncode == 0, again.stderr
    assert "trained from step" in again.stdout
    assert losses(tmp_path / "run") == losses(run)


def test_two_processes_of_the_deepspeed_launcher_train_as_one_does(run: Path, tiny: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run")
    launcher = Path(sys.executable).with_name("deepspeed")
    done = command(launcher, "--master_port", "29611", "train.py", "--config", config, env={"LOCAL_SIZE": "2"})
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 x cpu" in done.stdout
    one, two = losses(run), losses(tmp_path / "run")
    assert len(one) == len(two) == 12
    # Sums over ranks are rounded in another order, and sooner or later that gives a position another code.
    np.testing.assert_allclose([x["loss"] for x in two[:4]], [x["loss"] for x in one[:4]], rtol=2e-5)
    np.testing.assert_allclose([x["loss"] for x in two], [x["loss"] for x in one], rtol=1e-2)


@pytest.mark.parametrize("kind", ["ae", "vae", "mae"])
def test_every_kind_of_model_learns_goes_on_and_embeds(tiny: Path, tmp_path: Path, kind: str) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run", kind=kind, steps=60)
    done = command("train.py", "--config", config)
    assert done.returncode == 0, done.stderr
    found = losses(tmp_path / "run")
    assert np.mean([x["loss"] for x in found[-4:]]) < 0.85 * np.mean([x["loss"] for x in found[:4]])
    assert all(x["effective_rank"] > 1 for x in found)
    table = tmp_path / "e.parquet"
    done = command("-m", "train", "embed", "--run", tmp_path / "run", "--data", tiny, "--out", table)
    assert done.returncode == 0, done.stderr
    features = [name for name in pq.read_table(table).column_names if name.startswith("feature_")]
    assert len(features) == (192 if kind == "mae" else 128)


def test_replicates_and_channels_are_brought_together_and_a_wrong_label_is_told(tiny: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run", kind="ae")
    for name, given in {
        "replicates": ["model.contrast={of: replicates, label: phenotype}"],
        "channels": ["model.channels=expand", "model.contrast={of: channels, similarity: euclidean, weight: 0.01}"],
    }.items():
        overrides = [word for value in [*given, f"run_dir={tmp_path / name}"] for word in ("--set", value)]
        done = command("train.py", "--config", config, *overrides)
        assert done.returncode == 0, done.stderr
        found = [x["contrast"] for x in losses(tmp_path / name)]
        assert all(np.isfinite(found))
        assert max(found) > 0
    wrong = command("train.py", "--config", config, "--set", "model.contrast={of: replicates, label: phenotpye}")
    assert wrong.returncode == 1
    assert "did you mean 'phenotype'" in wrong.stderr


def test_datasets_of_unlike_channels_train_one_model_and_each_is_embedded(
    tiny: Path, two_channels: Path, tmp_path: Path
) -> None:
    two = two_channels
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run", kind="mae", steps=20)
    many = ["--set", f"data.path=[{two}, {tiny}]", "--set", "data.weights=[1, 3]", "--set", "model.channels=agnostic"]
    done = command("train.py", "--config", config, *many, "--set", "data.batch_size=8")
    assert done.returncode == 0, done.stderr
    assert "40 samples" in done.stdout
    found = [x["loss"] for x in losses(tmp_path / "run")]
    assert np.mean(found[-4:]) < 0.95 * np.mean(found[:4])
    tables = {}
    for name, data, more in (
        ("two", two, ["--channels", "DNA,Protein"]),
        ("same", tiny, ["--channels", "Protein,DNA"]),
    ):
        out = tmp_path / f"{name}.parquet"
        done = command("-m", "train", "embed", "--run", tmp_path / "run", "--data", data, "--out", out, *more)
        assert done.returncode == 0, done.stderr
        tables[name] = read_embeddings(out)[1]
    # The same pixels of two channels, in another order and among others on disk: the same embedding.
    np.testing.assert_allclose(tables["two"], tables["same"], rtol=1e-3, atol=1e-4)
    strict = command("train.py", "--config", config, "--set", f"data.path=[{tiny}, {two}]")
    assert strict.returncode == 1
    assert "has no channel 'Actin'" in strict.stderr


def test_layer_and_pooling_are_chosen_and_a_wrong_layer_is_told(run: Path, tiny: Path, tmp_path: Path) -> None:
    embed = ["-m", "train", "embed", "--run", run, "--data", tiny, "--out", tmp_path / "e.parquet"]
    done = command(*embed, "--layer", "2", "--pooling", "mean+std")
    assert done.returncode == 0, done.stderr
    names = pq.read_table(tmp_path / "e.parquet").column_names
    assert len([name for name in names if name.startswith("feature_")]) == 2 * 64
    wrong = command(*embed, "--layer", "9")
    assert wrong.returncode == 1
    assert "layer 9: the vqvae of resnet18 has layers 1 to 3" in wrong.stderr
    wrong = command(*embed, "--channels", "DNA")
    assert wrong.returncode == 1
    assert "the run's model takes DNA" in wrong.stderr


def test_a_run_of_epochs_has_their_steps(tiny: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run", kind="ae", steps="3 epochs")
    more = ["--set", "schedule.warmup_steps=1 epoch", "--set", "schedule.cooldown_steps=1 epoch"]
    done = command("train.py", "--config", config, *more)
    assert done.returncode == 0, done.stderr
    rates = [x["lr"] for x in losses(tmp_path / "run")]
    assert len(rates) == 3 * 5
    assert rates[0] == pytest.approx(1e-5)
    assert rates[5] == pytest.approx(1e-3)
    assert rates[10:] == pytest.approx([1e-5] * 5)
    assert all(one > other for one, other in itertools.pairwise(rates[5:11]))


def test_tensorboard_holds_losses_speed_perplexity_and_pictures(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    names = {"loss", "reconstruction", "commitment", "perplexity", "samples_per_s", "data_wait_share", "lr"}
    names |= {"bad_samples", "effective_rank"}
    assert names <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))
    assert "input_and_reconstruction" in board.Tags()["images"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.bach_size=3", "did you mean 'batch_size'"),
        ("data.channels=[DNAA]", "has no channel 'DNAA'; did you mean 'DNA'"),
        ("data.path=nowhere", "nowhere: dataset.json is missing"),
        ("data.split=tarin", "did you mean 'train'"),
    ],
)
def test_bad_input_is_one_line_and_a_non_zero_exit(tiny: Path, tmp_path: Path, override: str, said: str) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, tmp_path / "run")
    done = command("train.py", "--config", config, "--check", "--set", override)
    assert done.returncode == 1
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_same_run_directory_is_refused(run: Path, tiny: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny, run)
    done = command("train.py", "--config", config, "--set", "optimiser.lr=0.5")
    assert done.returncode == 1
    assert "holds a run with other settings: optimiser.lr" in done.stderr


def test_embedding_twice_is_bit_identical_and_has_a_row_for_every_sample(run: Path, tiny: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = command("-m", "train", "embed", "--run", run, "--data", tiny, "--out", tmp_path / f"{name}.parquet")
        assert done.returncode == 0, done.stderr
    a, b = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("a", "b"))
    assert a.equals(b)
    assert len(a) == 20
    assert {"Metadata_well", "Metadata_plate", "Metadata_phenotype", "Metadata_split"} <= set(a.column_names)
    assert [name for name in a.column_names if name.startswith("feature_")] == [f"feature_{i:04d}" for i in range(128)]
    assert all(np.ptp(a[f"feature_{i:04d}"].to_numpy()) > 0 for i in range(128))


def test_the_report_sets_the_embedding_beside_its_baselines(run: Path, tiny: Path, tmp_path: Path) -> None:
    table, out = tmp_path / "e.parquet", tmp_path / "report"
    assert command("-m", "train", "embed", "--run", run, "--data", tiny, "--out", table).returncode == 0
    done = command(
        "-m", "train", "evaluate", "--embeddings", table, "--label", "phenotype", "--folds", "3", "--out", out
    )
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    names = {"trained embedding", "random weights, same encoder", "intensity mean + std", "permuted labels"}
    assert names < set(metrics)
    assert (
        metrics["majority class"]["balanced_accuracy"] <= 0.2
    )  # below it where the folds differ in their commonest class
    assert metrics["trained embedding"]["report"]["control"]["support"] == 4
    assert "| class | precision | recall | F1 | support |" in done.stdout
    for name in ("report.md", "umap.png", "reconstruction.png"):
        assert (out / name).stat().st_size > 500
    wrong = command("-m", "train", "evaluate", "--embeddings", table, "--label", "phenotpye", "--out", out)
    assert wrong.returncode == 1
    assert "did you mean 'phenotype'" in wrong.stderr
