"""The training loop."""

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bie_stream.errors import ConfigError, nearest
from bie_stream.loader import Loader
from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import Config
from train.engine import Engine, barrier
from train.monitor import Monitor


def train(config: Config, engine: Engine, loader: Loader) -> int:
    """Trains to the last step, from the last checkpoint of the run if there is one. Returns the first step taken."""
    first = _resume(config, engine, loader)
    monitor = Monitor(config, loader, engine.world.rank, engine.world.device, first)
    every, step = config.training, first
    steps = int(every.steps)
    groups = _groups(config, loader)

    while step < steps:
        for batch in loader:
            of = None if groups is None else groups[batch.dataset, batch.ids]
            present = None if batch.present.all() else batch.present
            output = engine.step(step, batch.images, of, present)
            step += 1
            monitor.observe(output)

            # once in a while: show
            if step % every.log_every == 0 or step == steps:
                monitor.log(step, engine.lr)
            if step % every.image_every == 0 or step == steps:
                shown = engine.reconstruct(batch.images[:4], None if present is None else present[:4])
                monitor.images(step, batch.images[:4], shown)

            # once in a while, and at the end: save (after showing, which stops a run whose loss is no number)
            if step % every.checkpoint_every == 0 or step == steps:
                _save(config, engine, loader, step)
            if step == steps:
                break
        monitor.end_epoch(step)

    monitor.close()
    return first


def _groups(config: Config, loader: Loader) -> Tensor | None:
    """[D, N] int64: the number of what a sample of a dataset is a replicate of; None where nothing is made of that."""
    contrast = config.model.contrast
    if contrast is None or contrast.label is None:
        return None
    columns = []
    for dataset in loader.datasets:
        if contrast.label not in (names := dataset.table.column_names):
            raise ConfigError(
                f"model.contrast.label {contrast.label!r} is no column of {dataset.folder}; "
                f"{nearest(contrast.label, names)}"
            )
        own = (f"{dataset.folder}/{plate}/" for plate in dataset.table["plate"].to_pylist())  # a well is one of a plate
        values = dataset.table[contrast.label].to_pylist()
        columns.append([value if contrast.label != "well" else at + value for at, value in zip(own, values)])
    numbers = {label: number for number, label in enumerate(dict.fromkeys(chain.from_iterable(columns)))}
    groups = np.full((len(columns), max(map(len, columns))), -1)
    for row, labels in zip(groups, columns, strict=True):
        row[: len(labels)] = [-1 if label is None else numbers[label] for label in labels]
    alone = -1 - np.arange(groups.size).reshape(groups.shape)  # who has no label is nobody's replicate
    return torch.from_numpy(np.where(groups < 0, alone, groups))


def _resume(config: Config, engine: Engine, loader: Loader) -> int:
    saved = checkpoint.load(config.run_dir)
    if saved is None:
        return 0
    engine.load_state(saved.tensors, saved.plain)
    loader.load_state_dict(saved.loader)
    return saved.step


def _save(config: Config, engine: Engine, loader: Loader, step: int) -> None:
    tensors, plain = engine.state()
    if engine.world.rank == 0:
        checkpoint.save(config.run_dir, Checkpoint(step, loader.state_dict(), tensors, plain))
    barrier()  # no rank goes on, and perhaps fails, before the checkpoint is whole
