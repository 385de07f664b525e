"""The training loop."""

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

    while step < every.steps:
        for batch in loader:
            parts, codes = engine.step(step, batch.images)
            step += 1
            monitor.observe(parts, codes)

            # once in a while: show
            if step % every.log_every == 0 or step == every.steps:
                monitor.log(step, engine.lr)
            if step % every.image_every == 0 or step == every.steps:
                monitor.images(step, batch.images[:4], engine.reconstruct(batch.images[:4]))

            # once in a while, and at the end: save (after showing, which stops a run whose loss is no number)
            if step % every.checkpoint_every == 0 or step == every.steps:
                _save(config, engine, loader, step)
            if step == every.steps:
                break

    monitor.close()
    return first


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
