from pathlib import Path

from command_line import command, write_config

from bench.embeddings import markdown, rows
from train.evaluate.question import Question

PHENOTYPE = {"phenotype": Question("phenotype", folds=2)}


def test_each_readout_stands_beside_random_weights_and_what_is_measured_is_what_evaluate_says(
    plate_dataset: Path, tmp_path: Path
) -> None:
    done = command(
        "train.py", "--config", write_config(tmp_path / "c.yaml", plate_dataset, tmp_path / "run", kind="ae")
    )
    assert done.returncode == 0, done.stderr
    found = list(rows(plate_dataset, [str(tmp_path / "run"), f"{tmp_path / 'run'}:1,3"], PHENOTYPE))
    assert [(row.weights, row.layer, row.pooling) for row in found[1:]] == [
        ("trained", "3", "mean"), ("random", "3", "mean"),
        *((weights, layer, pooling) for weights in ("trained", "random") for layer in "13"
          for pooling in ("mean", "mean+std")),
    ]  # fmt: skip
    assert found[1].accuracy == found[5].accuracy
    table, report = tmp_path / "e.parquet", tmp_path / "report"
    embed = ["--run", tmp_path / "run", "--data", plate_dataset, "--out", table]
    assert command("-m", "train", "embed", *embed).returncode == 0
    asked = ["--embeddings", table, "--label", "phenotype", "--folds", "2", "--out", report]
    done = command("-m", "train", "evaluate", *asked)
    assert done.returncode == 0, done.stderr
    for row, name in ((found[1], "trained embedding"), (found[2], "random weights, same encoder")):
        assert f"| {name} | {row.accuracy['phenotype']:.3f} |" in done.stdout
    assert f"| run | trained | 3 | mean | {found[1].accuracy['phenotype']:.3f} |" in markdown(found)
