"""What the embeddings of several runs are worth, by layer and pooling, beside the same models with random weights.

    python -m bench.embeddings DATA OUT RUN[:LAYER,LAYER…] [RUN…]

DATA are the tiles of BBBC013 (train/configs/bbbc013_vqvae.yaml says how they are built), RUN a run directory; without
layers its own readout is taken, by the mean. Every figure is a balanced random forest's, out of fold: which of the
controls a tile is of, folds by well; and the tercile of the dose, each row of the plate left out.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import bie_stream
from bench.conditions import conditions
from train.checkpoint import load_model
from train.config import Pooling, Readout
from train.evaluate.embed import features_of
from train.evaluate.probe import forest
from train.evaluate.question import Asked, Question, ask
from train.evaluate.report import intensity
from train.models import build

CONTROLS = Question("control", folds=5)
TERCILES = Question("dose_rank", group="row", folds=8, bins=((1, 3), (4, 6), (7, 10)))
POOLINGS: tuple[Pooling, ...] = ("mean", "mean+std")


@dataclass(frozen=True)
class Row:
    """Balanced accuracies, and the rank correlation of dose by well, of one embedding."""

    run: str
    weights: str
    layer: str
    pooling: str
    controls: float
    terciles: float
    spearman: float


def rows(data: Path, runs: list[str]) -> Iterator[Row]:
    """The intensity, then of each run each readout, trained and not."""
    dataset = bie_stream.open(data)
    asked = ask(dataset.table, CONTROLS), ask(dataset.table, TERCILES)
    yield _row("intensity mean + std", "", "", "", intensity(dataset), *asked)
    for word in runs:
        name, _, layers = word.partition(":")
        trained, config, info = load_model(Path(name))
        own = dataset if dataset.channels == info.channels else bie_stream.open(data, channels=info.channels)
        torch.manual_seed(config.training.seed)
        for weights, model in (("trained", trained), ("random", build(config.model, len(info.channels)).eval())):
            for layer in map(int, layers.split(",")) if layers else [config.readout.layer]:
                for pooling in POOLINGS if layers else [config.readout.pooling]:
                    readout = Readout(layer=layer, pooling=pooling)
                    features = features_of(own, model, config, info, readout)
                    yield _row(Path(name).name, weights, f"{layer or model.layers}", pooling, features, *asked)


def _row(
    run: str, weights: str, layer: str, pooling: str, features: npt.NDArray[np.float32],
    controls: Asked, terciles: Asked,
) -> Row:  # fmt: skip
    found = [asked.score(forest(features[asked.taken], asked.labels, asked.folds)) for asked in (controls, terciles)]
    rank = found[1].spearman
    assert rank is not None, "of doses there is one"
    return Row(run, weights, layer, pooling, found[0].balanced_accuracy, found[1].balanced_accuracy, rank)


def line(row: Row) -> str:
    """Of a Markdown table."""
    readout = f"{row.layer} | {row.pooling}"
    return f"| {row.run} | {row.weights} | {readout} | {row.controls:.3f} | {row.terciles:.3f} | {row.spearman:.2f} |"


HEAD = ["| run | weights | layer | pooling | controls | dose terciles | Spearman |", "|---|---|---|---|---|---|---|"]


def main(data: Path, out: Path, runs: list[str]) -> None:
    before, found = conditions(), []
    print("\n".join(HEAD), flush=True)
    for row in rows(data, runs):
        found.append(row)
        print(line(row), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    record = {"conditions": before, "rows": [asdict(row) for row in found]}
    (out / "embeddings.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "embeddings.md").write_text("\n".join([*HEAD, *map(line, found)]) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
