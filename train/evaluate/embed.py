"""Run + dataset → one row per sample: `Metadata_*` columns of the sample table, then the features, as Parquet.

No augmentation, samples in order, every bad sample an error. The layout is that of pycytominer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

import bie_stream
from bie_stream.atomic import atomic_file
from bie_stream.dataset import Dataset
from bie_stream.errors import ConfigError, DatasetError
from bie_stream.loader import Loader
from bie_stream.normalise import Normalisation, Normalise, normalisation
from train.checkpoint import RunInfo, load_model
from train.config import Config, Pooling, Readout
from train.models import Model

PREFIX = "Metadata_"
_NOT_METADATA = ("offset", "size", "crc32c", "shape", "shard")


def embed_run(
    run_dir: Path, data: Path, out: Path, split: str | None = None, batch_size: int = 64, layer: int | None = None,
    pooling: Pooling | None = None,    channels: Sequence[str] | None = None,
) -> int:  # fmt: skip
    """Writes the embedding of a dataset by a run's model. Returns the number of samples.

    Args:
        layer, pooling: other ones than the run's readout has.
        channels: other ones than the run's, for a model that takes any.

    Raises:
        ConfigError: there is no such run, or its model has no such layer, or takes no other channels.
        DatasetError: the dataset lacks the channels, or cannot be read.
    """
    model, config, info = load_model(run_dir)
    readout = Readout(layer=layer or config.readout.layer, pooling=pooling or config.readout.pooling)
    if (readout.layer or 1) > model.layers:
        raise ConfigError(f"layer {readout.layer}: the {config.model.title} has layers 1 to {model.layers}")
    if channels is not None and config.model.kind_of_channels == "stack" and tuple(channels) != info.channels:
        raise ConfigError(
            f"channels {', '.join(channels)}: the run's model takes {', '.join(info.channels)}, in this order; any "
            "channels are for models with channels: agnostic or expand"
        )
    dataset = bie_stream.open(data, split=split, channels=channels or info.channels)
    features = features_of(dataset, model, config, info, readout, batch_size)
    table = pa.table(
        {
            **{
                f"{PREFIX}{name}": dataset.table[name]
                for name in dataset.table.column_names
                if name not in _NOT_METADATA
            },
            **{f"feature_{i:04d}": features[:, i] for i in range(features.shape[1])},
        }
    )
    origin: dict[str, Any] = {
        "run": str(run_dir.resolve()),
        "data": str(data.resolve()),
        "split": split,
        "channels": dataset.channels,
    }
    origin["readout"] = readout.model_dump()
    with atomic_file(out) as path:
        pq.write_table(table.replace_schema_metadata({"bie_stream": json.dumps(origin)}), path, compression="zstd")
    return len(table)


def features_of(
    dataset: Dataset, model: Model, config: Config, info: RunInfo, readout: Readout, batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """[N, F] float32: the embedding of every sample in order, normalised as the run was trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    loader = evaluation_loader(dataset, config, info, batch_size, device)
    parts = []
    with torch.inference_mode():
        for batch in tqdm(loader, total=loader.steps_per_epoch, unit="batch", desc="embed", dynamic_ncols=True):
            parts.append(model.embed(batch.images, readout).float().cpu().numpy()[batch.valid.numpy()])
    return np.concatenate(parts)


def evaluation_loader(dataset: Dataset, config: Config, info: RunInfo, batch_size: int, device: torch.device) -> Loader:
    """Whole samples in order, with the normalisation that the run was trained with."""
    uneven = (dataset.shapes % config.model.stride).any(axis=1)
    if uneven.any():
        height, width = dataset.shapes[uneven.argmax()]
        raise DatasetError(
            f"samples of {height} x {width} pixels are no multiple of the model's stride {config.model.stride}; "
            "build the dataset with --tile"
        )
    return Loader(
        dataset, min(batch_size, len(dataset)), normalise=_normalisation(dataset, config, info), training=False,
        device=device, dtype=torch.float32, backend=config.data.backend, threads=config.data.threads,
    )  # fmt: skip


def _normalisation(dataset: Dataset, config: Config, info: RunInfo) -> Normalise | Normalisation:
    """By the numbers of the run; by the dataset's own of its plates, of channels that the run did not know, and for a
    run on several datasets, each of which had its own."""
    kind, known = config.data.normalise, dict(zip(info.channels, info.statistics, strict=True))
    if kind == "plate" or len(info.datasets) > 1:
        return kind
    pairs = zip(dataset.channels, dataset.statistics, strict=True)
    return normalisation(kind, dataset.channels, tuple(known.get(name, own) for name, own in pairs))


def read_embeddings(path: Path) -> tuple[pa.Table, npt.NDArray[np.float32], dict[str, Any]]:
    """Metadata (names without prefix), features [N, F], and which run and data they came from.

    Raises:
        ConfigError: it is no file that `embed` wrote.
    """
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[b"bie_stream"])
    except (OSError, pa.ArrowInvalid, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a table that `python -m train embed` wrote: {error}") from error
    metadata = [name for name in table.column_names if name.startswith(PREFIX)]
    features = [table[name].to_numpy() for name in table.column_names if name not in metadata]
    renamed = table.select(metadata).rename_columns([name.removeprefix(PREFIX) for name in metadata])
    return renamed, np.stack(features, axis=1).astype(np.float32), origin
