"""Run + dataset → one row per sample: `Metadata_*` columns of the sample table, then the features, as Parquet.

No augmentation, samples in order, every bad sample an error. The layout is that of pycytominer.
"""

import json
from pathlib import Path

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
from bie_stream.normalise import normalisation
from train.checkpoint import RunInfo, load_model
from train.config import Config
from train.models import Model

PREFIX = "Metadata_"
_NOT_METADATA = ("offset", "size", "crc32c", "shape", "shard")


def embed_run(run_dir: Path, data: Path, out: Path, split: str | None = None, batch_size: int = 64) -> int:
    """Writes the embedding of a dataset by a run's model. Returns the number of samples.

    Raises:
        ConfigError: there is no such run.
        DatasetError: the dataset lacks the run's channels, or cannot be read.
    """
    model, config, info = load_model(run_dir)
    dataset = bie_stream.open(data, split=split, channels=info.channels)
    features = features_of(dataset, model, config, info, batch_size)
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
    origin = {"run": str(run_dir.resolve()), "data": str(data.resolve()), "split": split}
    with atomic_file(out) as path:
        pq.write_table(table.replace_schema_metadata({"bie_stream": json.dumps(origin)}), path, compression="zstd")
    return len(table)


def features_of(
    dataset: Dataset, model: Model, config: Config, info: RunInfo, batch_size: int = 64
) -> npt.NDArray[np.float32]:
    """[N, F] float32: the embedding of every sample in order, normalised as the run was trained."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    loader = evaluation_loader(dataset, config, info, batch_size, device)
    parts = []
    with torch.inference_mode():
        for batch in tqdm(loader, total=loader.steps_per_epoch, unit="batch", desc="embed", dynamic_ncols=True):
            parts.append(model.embed(batch.images).float().cpu().numpy()[batch.valid.numpy()])
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
    kind = config.data.normalise  # by plate every dataset has its own numbers
    by = kind if kind == "plate" else normalisation(kind, info.channels, info.statistics)
    return Loader(
        dataset, min(batch_size, len(dataset)), normalise=by, training=False, device=device,
        dtype=torch.float32, backend=config.data.backend, threads=config.data.threads,
    )  # fmt: skip


def read_embeddings(path: Path) -> tuple[pa.Table, npt.NDArray[np.float32], dict[str, str | None]]:
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
