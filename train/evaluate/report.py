"""Embeddings → a folder that a person can read: report.md with figures, metrics.json.

The trained embedding stands in one table with what it has to beat: the majority class, permuted labels, the mean and
standard deviation of each channel's intensity, and the same encoder with random weights.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import bie_stream
from bie_stream.atomic import atomic_folder
from bie_stream.dataset import Dataset
from bie_stream.errors import ConfigError
from train.checkpoint import load_model
from train.config import Readout
from train.evaluate.embed import evaluation_loader, features_of, read_embeddings
from train.evaluate.figures import reconstruction_picture, umap_picture
from train.evaluate.probe import Score, forest, majority, permute_by_well, score
from train.evaluate.question import Question, ask
from train.models import build
from train.monitor import side_by_side

TRAINED, RANDOM, INTENSITY = "trained embedding", "random weights, same encoder", "intensity mean + std"
PERMUTED, MAJORITY = "permuted labels", "majority class"


def evaluate(embeddings: Path, out: Path, question: Question, run: Path | None = None, data: Path | None = None) -> str:
    """Writes the report folder and returns the text of its tables.

    Raises:
        ConfigError: the question does not fit the table, or the run or dataset cannot be found.
    """
    metadata, features, origin = read_embeddings(embeddings)
    run, data = run or Path(str(origin["run"])), data or Path(str(origin["data"]))
    asked = ask(metadata, question)
    labels, folds, features = asked.labels, asked.folds, features[asked.taken]

    model, config, info = load_model(run)
    dataset = bie_stream.open(data, split=origin["split"], channels=origin["channels"])
    readout = Readout(**origin["readout"])
    if dataset.table["key"].to_pylist() != metadata["key"].to_pylist():
        raise ConfigError(f"{data} is not the dataset that {embeddings} was made from; embed it again")
    dataset = dataset.select(asked.taken)
    torch.manual_seed(config.training.seed)
    untrained = build(config.model, len(info.channels)).eval()

    probabilities = {
        TRAINED: forest(features, labels, folds),
        RANDOM: forest(features_of(dataset, untrained, config, info, readout), labels, folds),
        INTENSITY: forest(intensity(dataset), labels, folds),
        MAJORITY: majority(labels, folds),
    }
    scores = {name: asked.score(found) for name, found in probabilities.items()}
    permuted = permute_by_well(labels, asked.wells)
    scores[PERMUTED] = score(forest(features, permuted, folds), permuted, asked.wells)
    tables = _tables(scores, question, folds.description, len(labels), len(metadata))
    with atomic_folder(out) as folder:
        umap_picture(features, labels, f"UMAP of the trained embedding, by {question.label}", folder / "umap.png")
        _reconstructions(dataset, model, config, info, folder / "reconstruction.png")
        (folder / "metrics.json").write_text(
            json.dumps({name: asdict(found) for name, found in scores.items()}, indent=2)
        )
        (folder / "report.md").write_text(_markdown(tables, question, run, data, config.data.split))
    return tables


def intensity(dataset: Dataset) -> npt.NDArray[np.float32]:
    """[N, 2 · C]: mean and standard deviation of each channel's raw pixels."""
    rows = []
    for sample in range(len(dataset)):
        pixels = dataset[sample].astype(np.float64)
        rows.append(np.concatenate([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))]))
    return np.array(rows, dtype=np.float32)


def _tables(scores: dict[str, Score], question: Question, folds: str, taken: int, total: int) -> str:
    ordinal = scores[TRAINED].spearman is not None
    lines = [
        f"label: {question.label}, {taken} of {total} samples; folds by {question.group}: {folds}",
        "",
        "| | balanced accuracy | macro F1 |" + (" Spearman per well |" if ordinal else ""),
        "|---|---|---|" + ("---|" if ordinal else ""),
    ]
    for name, found in scores.items():
        rank = "" if not ordinal else f" {found.spearman:.2f} |" if found.spearman is not None else " |"
        lines.append(f"| {name} | {found.balanced_accuracy:.3f} | {found.macro_f1:.3f} |{rank}")
    lines += ["", "| class | precision | recall | F1 | support |", "|---|---|---|---|---|"]
    for name, row in scores[TRAINED].report.items():
        if isinstance(row, dict):
            figures = [f"{row[key]:.3f}" for key in ("precision", "recall", "f1-score")]
            lines.append(f"| {name} | {' | '.join(figures)} | {row['support']:.0f} |")
    return "\n".join(lines) + "\n"


def _markdown(tables: str, question: Question, run: Path, data: Path, split: str | None) -> str:
    seen = "all samples" if split is None else f"split {split!r}"
    return (
        f"# {question.label} from the embeddings of {run.name}\n\n"
        f"A balanced random forest of 300 trees, out-of-fold predictions; run `{run.name}`, data `{data.name}`. "
        f"The autoencoder was trained without labels on {seen} of its dataset.\n\n{tables}\n"
        "The per-class table is that of the trained embedding; those of the others are in `metrics.json`.\n\n"
        "![UMAP](umap.png)\n\n![Input and reconstruction](reconstruction.png)\n"
    )


def _reconstructions(dataset: Dataset, model: Any, config: Any, info: Any, out: Path, show: int = 4) -> None:
    picked = np.zeros(len(dataset), dtype=bool)
    picked[np.linspace(0, len(dataset) - 1, show).round().astype(int)] = True
    chosen = dataset.select(picked)
    device = next(model.parameters()).device
    batch = next(iter(evaluation_loader(chosen, config, info, len(chosen), device)))
    with torch.inference_mode():
        pairs = side_by_side(batch.images, model(batch.images).reconstruction)[0]
    wells = [f"{row['plate']} {row['well']}" for row in chosen.table.select(["plate", "well"]).to_pylist()]
    reconstruction_picture(pairs.numpy(), info.channels, wells, out)
