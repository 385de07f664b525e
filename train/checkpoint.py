"""What a run directory holds.

    <run_dir>/
      config.yaml                      the resolved configuration
      run.json                         channels and normalisation the model was trained with, and on which dataset
      metrics.jsonl                    one line per logging step, full precision
      tensorboard/
      checkpoints/step-0000250/        state.safetensors (weights, codebook, optimiser), state.json (step, loader)

A checkpoint appears whole or not at all, holds nothing that is unpickled, and does not depend on the number of
processes that wrote it.
"""

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save_file

from bie_stream.atomic import PARTIAL, atomic_file, atomic_folder
from bie_stream.codecs import Dtype
from bie_stream.dataset import Dataset
from bie_stream.errors import ConfigError
from bie_stream.shards import ChannelStatistics
from train.config import Config, load_config
from train.models import Model, build

T = TypeVar("T")

_KEEP = 2
# What may differ when a run goes on: where things lie and how fast they come, never what is computed.
_MAY_CHANGE = {
    "run_dir", "data.path", "data.backend", "data.threads", "data.prefetch_batches", "readout.layer", "readout.pooling",
}  # fmt: skip


class RunInfo(BaseModel):
    """What `run.json` holds: what a model needs to be told beside its weights, and what its data were.

    Attributes:
        datasets: their folders.
        statistics: of each channel over the dataset; of several over the first that has it.
        plan_sha256: of the dataset's plan; of several the hash of theirs.
        study, source, licence, citation: as the manifest has them, of several datasets joined by " + "; None where it
            does not say.
        dtype, pixel_size_um: likewise; None where several differ.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: tuple[str, ...]
    statistics: tuple[ChannelStatistics, ...]
    datasets: tuple[str, ...]
    study: str
    plan_sha256: str
    source: str | None = None
    licence: str | None = None
    citation: str | None = None
    dtype: Dtype | None = None
    pixel_size_um: float | None = None

    @classmethod
    def of(cls, datasets: Sequence[Dataset]) -> "RunInfo":
        manifests = [dataset.manifest for dataset in datasets]
        plans = [manifest.plan_sha256 for manifest in manifests]
        of_channels = zip(*(dataset.statistics for dataset in datasets), strict=True)
        return cls(
            channels=datasets[0].channels,
            statistics=tuple(next(own for own in of_channel if own is not None) for of_channel in of_channels),
            datasets=tuple(str(dataset.folder) for dataset in datasets),
            plan_sha256=plans[0] if len(plans) == 1 else sha256(" ".join(plans).encode()).hexdigest(),
            study=_joined(manifest.study for manifest in manifests) or "",
            source=_joined(manifest.source for manifest in manifests),
            licence=_joined(manifest.licence for manifest in manifests),
            citation=_joined(manifest.citation for manifest in manifests),
            dtype=_common([manifest.dtype for manifest in manifests]),
            pixel_size_um=_common([manifest.pixel_size_um for manifest in manifests]),
        )


def _joined(texts: Iterable[str | None]) -> str | None:
    return " + ".join(dict.fromkeys(text for text in texts if text)) or None


def _common(values: Sequence[T]) -> T | None:
    return values[0] if len(set(values)) == 1 else None


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, read."""

    step: int
    loader: dict[str, int]
    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]


def prepare(config: Config, info: RunInfo) -> None:
    """Begins a run directory, or holds the one there against this configuration.

    Raises:
        ConfigError: a run with another configuration or dataset is there.
    """
    stored = config.run_dir / "config.yaml"
    if stored.exists():
        changed = _differences(load_config(stored).model_dump(mode="json"), config.model_dump(mode="json"))
        changed = [name for name in changed if name not in _MAY_CHANGE]
        if (there := read_info(config.run_dir)).plan_sha256 != info.plan_sha256:
            changed.append(f"the dataset (plan {there.plan_sha256[:12]}, now {info.plan_sha256[:12]})")
        if changed:
            raise ConfigError(
                f"{config.run_dir} holds a run with other settings: {', '.join(changed)}; "
                "choose another run_dir, or remove that one"
            )
    with atomic_file(config.run_dir / "run.json") as path:
        path.write_text(info.model_dump_json(indent=2) + "\n")
    with atomic_file(stored) as path:
        path.write_text(config.yaml())


def _differences(a: Any, b: Any, at: str = "") -> list[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = dict.fromkeys([*a, *b])
        return [name for key in keys for name in _differences(a.get(key), b.get(key), f"{at}.{key}".lstrip("."))]
    return [] if a == b else [at]


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint and removes old ones."""
    with atomic_folder(_folder(run_dir, checkpoint.step)) as path:
        save_file({k: v.cpu().contiguous() for k, v in checkpoint.tensors.items()}, path / "state.safetensors")
        state = {"step": checkpoint.step, "loader": checkpoint.loader, "plain": checkpoint.plain}
        (path / "state.json").write_text(json.dumps(state))
    for step in steps(run_dir)[:-_KEEP]:
        shutil.rmtree(_folder(run_dir, step))


def steps(run_dir: Path) -> list[int]:
    """Steps of the whole checkpoints of a run, ascending."""
    found = (run_dir / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found if path.suffix != PARTIAL)


def load(run_dir: Path) -> Checkpoint | None:
    """The last checkpoint of a run; None if there is none yet."""
    there = steps(run_dir)
    if not there:
        return None
    folder = _folder(run_dir, there[-1])
    state = json.loads((folder / "state.json").read_text())
    return Checkpoint(state["step"], state["loader"], load_file(folder / "state.safetensors"), state["plain"])


def read_info(run_dir: Path) -> RunInfo:
    """What a run's model was trained with.

    Raises:
        ConfigError: there is no run.
    """
    try:
        return RunInfo.model_validate_json((run_dir / "run.json").read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"no run at {run_dir}: run.json is missing; train one with `deepspeed train.py`") from error


def load_model(run_dir: Path) -> tuple[Model, Config, RunInfo]:
    """The model of a run with its last weights, for evaluation.

    Raises:
        ConfigError: there is no run, or no checkpoint in it yet.
    """
    info, config = read_info(run_dir), load_config(run_dir / "config.yaml")
    checkpoint = load(run_dir)
    if checkpoint is None:
        raise ConfigError(f"the run at {run_dir} has no checkpoint yet; let it train on")
    model = build(config.model, len(info.channels))
    weights = {k.removeprefix("model."): v for k, v in checkpoint.tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights)
    return model.eval(), config, info


def _folder(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:07d}"
