"""Config → dataset, model, engine → loop. The command behind `train.py`."""

import itertools
import os
from pathlib import Path
from typing import Annotated

import torch
import typer

import bie_stream
from bie_stream.augment import Augment
from bie_stream.dataset import Dataset
from bie_stream.errors import ConfigError, one_line_errors
from bie_stream.loader import Loader
from train import checkpoint
from train.config import Config, load_config
from train.models import build

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Option(help="YAML, see train/configs/.", show_default=False)],
    set_: Annotated[list[str], typer.Option("--set", help="section.key=value, instead of what the file says.")] = [],  # noqa: B006 - typer wants it so
    check: Annotated[bool, typer.Option("--check", help="Validate, print the resolved configuration, stop.")] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", "--local-rank", hidden=True)] = 0,
) -> None:
    """Train an autoencoder on shards. Run again after a stop, it goes on from its last checkpoint.

    deepspeed train.py --config train/configs/demo_vqvae.yaml

    LOCAL_SIZE=2 deepspeed train.py --config FILE (two processes on CPUs)
    """
    rank = int(os.environ.get("RANK", local_rank))
    with one_line_errors(quiet=rank != 0):  # what is wrong here is wrong on every rank: one of them says it
        settings = load_config(config, set_)
        datasets = _open(settings)
        if check:
            build(settings.model, len(datasets[0].channels))
            typer.echo(settings.yaml(), nl=False)
            return
    with one_line_errors():
        _train(settings, datasets)


def _open(config: Config) -> list[Dataset]:
    data = config.data
    channels, several = data.channels, len(data.paths) > 1
    if channels is None and several:
        own = [bie_stream.open(path).channels for path in data.paths]
        channels = tuple(dict.fromkeys(itertools.chain.from_iterable(own)))
    mixed = several and config.model.kind_of_channels == "agnostic"
    datasets = [bie_stream.open(path, split=data.split, channels=channels, absent_ok=mixed) for path in data.paths]
    for dataset in datasets:
        side = [data.crop] if data.crop else dataset.shapes.flatten().tolist()
        if any(pixels % config.model.stride for pixels in side):
            raise ConfigError(
                f"samples of {dataset.shapes[0][0]} x {dataset.shapes[0][1]} pixels are no multiple of model.stride "
                f"{config.model.stride}; set data.crop to one that is"
            )
    return datasets


def _train(config: Config, datasets: list[Dataset]) -> None:
    from train import engine  # here, because DeepSpeed takes seconds to import and --check does not need it
    from train.loop import train

    world = engine.start()
    try:
        torch.manual_seed(config.training.seed)
        model = build(config.model, len(datasets[0].channels), fresh=False)
        loader = _loader(config, datasets, world.rank, world.size, world.device)
        config = config.in_steps(loader.steps_per_epoch)
        if world.rank == 0:
            checkpoint.prepare(config, checkpoint.RunInfo.of(datasets))
        running = engine.Engine(config, model, world)
        if world.rank == 0:
            weights = sum(parameter.numel() for parameter in model.parameters())
            print(
                f"{config.model.title}, {weights / 1e6:.1f} M weights | "
                f"{sum(map(len, datasets))} samples, {loader.steps_per_epoch} steps an epoch, "
                f"images {loader.image_shape} | "
                f"{world.size} x {world.device.type}, {running.precision}, data by {loader.backend}",
                flush=True,
            )
        first = train(config, running, loader)
        if world.rank == 0:
            start = f"from step {first} " if first else ""
            print(f"trained {start}to step {config.training.steps}; next: python -m train embed --run {config.run_dir}")
    finally:
        engine.stop()


def _loader(config: Config, datasets: list[Dataset], rank: int, world_size: int, device: torch.device) -> Loader:
    data = config.data
    return Loader(
        datasets, data.batch_size, weights=data.weights, crop=data.crop, views=data.views, normalise=data.normalise,
        augment=Augment(**data.augment.model_dump()),
        seed=config.training.seed, rank=rank, world_size=world_size, device=device, dtype=torch.float32,
        backend=data.backend, threads=data.threads, prefetch_batches=data.prefetch_batches,
        max_bad_fraction=data.max_bad_fraction,
    )  # fmt: skip
