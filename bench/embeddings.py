"""What the embeddings of several runs are worth, by layer and pooling, beside the same models with random weights.

    python -m bench.embeddings DATA OUT RUN[:LAYER,LAYER…] [RUN…]

DATA are the tiles of BBBC013 (train/configs/bbbc013_vqvae.yaml says how they are built), RUN a run directory; without
layers its own readout is taken, by the mean. Every figure is a balanced random forest's, out of fold: which of the
controls a tile is of, folds by well; and the tercile of the dose, each row of the plate left out.
"""

import json
import sys
from collections.abc import Iterator, Mapping
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

QUESTIONS = {
    "controls": Question("control", folds=5),
    "dose terciles": Question("dose_rank", group="row", folds=8, bins=((1, 3), (4, 6), (7, 10))),
}
POOLINGS: tuple[Pooling, ...] = ("mean", "mean+std")


@dataclass(frozen=True)
class Row:
    """One embedding.

    Attributes:
        weights: `trained` or `random`; empty of what no model made.
        accuracy: balanced, by question.
        spearman: between predicted and true number by well, of the questions that are about one.
    """

    run: str
    weights: str
    layer: str
    pooling: str
    accuracy: dict[str, float]
    spearman: dict[str, float]


def rows(data: Path, runs: list[str], questions: Mapping[str, Question] = QUESTIONS) -> Iterator[Row]:
    """The intensity, then of each run each readout, trained and not."""
    dataset = bie_stream.open(data)
    asked = {name: ask(dataset.table, question) for name, question in questions.items()}
    yield _row("intensity mean + std", "", "", "", intensity(dataset), asked)
    for word in runs:
        name, _, layers = word.partition(":")
        trained, config, info = load_model(Path(name))
        own = bie_stream.open(data, channels=info.channels)
        torch.manual_seed(config.training.seed)
        for weights, model in (("trained", trained), ("random", build(config.model, len(info.channels)).eval())):
            for layer in map(int, layers.split(",")) if layers else [config.readout.layer]:
                for pooling in POOLINGS if layers else [config.readout.pooling]:
                    features = features_of(own, model, config, info, Readout(layer=layer, pooling=pooling))
                    yield _row(Path(name).name, weights, f"{layer or model.layers}", pooling, features, asked)


def _row(
    run: str, weights: str, layer: str, pooling: str, features: npt.NDArray[np.float32], asked: Mapping[str, Asked]
) -> Row:  # fmt: skip
    found = {name: of.score(forest(features[of.taken], of.labels, of.folds)) for name, of in asked.items()}
    accuracy = {name: score.balanced_accuracy for name, score in found.items()}
    spearman = {name: score.spearman for name, score in found.items() if score.spearman is not None}
    return Row(run, weights, layer, pooling, accuracy, spearman)


def markdown(found: list[Row]) -> str:
    """A table; in brackets the rank correlation."""
    names = list(found[0].accuracy)
    lines = [
        f"| run | weights | layer | pooling | {' | '.join(names)} |",
        f"|---|---|---|---|{'---|' * len(names)}",
    ]
    for row in found:
        rank = {name: f" ({row.spearman[name]:.2f})" for name in row.spearman}
        figures = [f"{row.accuracy[name]:.3f}{rank.get(name, '')}" for name in names]
        lines.append(f"| {row.run} | {row.weights} | {row.layer} | {row.pooling} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main(data: Path, out: Path, runs: list[str]) -> None:
    before, found = conditions(), []
    for row in rows(data, runs):
        found.append(row)
        print(f"{row.run} {row.weights} {row.layer} {row.pooling}: {row.accuracy}", file=sys.stderr, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    record = {"conditions": before, "rows": [asdict(row) for row in found]}
    (out / "embeddings.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "embeddings.md").write_text(markdown(found))
    print(markdown(found), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
