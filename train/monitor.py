"""What a person sees of a run: one console line per logging step, TensorBoard, metrics.jsonl."""

import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from bie_stream.errors import BieStreamError
from bie_stream.loader import Loader
from train.config import Config
from train.engine import mean_over_ranks
from train.health import alarms, effective_rank
from train.models import Output

_log = logging.getLogger("train")


class Monitor:
    """Gathers between two logging steps; rank 0 shows. Call `observe` every step and `log` at logging steps."""

    def __init__(self, config: Config, loader: Loader, rank: int, device: torch.device, first_step: int) -> None:
        self._config, self._loader, self._device = config, loader, device
        quantiser = getattr(config.model, "quantiser", None)
        self._codes = (quantiser.books, quantiser.codes) if quantiser else (0, 0)
        self._used_in_epoch = torch.zeros(self._codes, device=device)
        self._metrics = config.run_dir / "metrics.jsonl"
        self._board: SummaryWriter | None = None
        if rank == 0:
            _cut(self._metrics, first_step)
            self._board = SummaryWriter(str(config.run_dir / "tensorboard"), purge_step=first_step)
        self._warned: set[str] = set()
        self._began, self._first_step = time.perf_counter(), first_step
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._health: dict[str, Tensor] = {}
        self._steps = 0
        self._used = torch.zeros(self._codes, device=self._device)
        self._codes_per_image = 0.0
        self._since, self._waited = time.perf_counter(), self._loader.report()["wait_s"]

    def observe(self, output: Output) -> None:
        """Takes in one step; nothing here waits for the device."""
        for sums, numbers in ((self._sums, output.losses), (self._health, output.health)):
            for name, number in numbers.items():
                sums[name] = sums[name] + number if name in sums else number
        self._steps += 1
        self._last = output.embedding
        if output.codes is not None:
            for used, codes in zip(self._used, output.codes.unbind(1), strict=True):
                used += torch.bincount(codes.flatten(), minlength=len(used))
            self._last_codes = output.codes

    def log(self, step: int, lr: float) -> None:
        """Shows the steps since the last call, over all ranks. Collective.

        Raises:
            BieStreamError: the loss is no longer a number.
        """
        means = {name: total / self._steps for name, total in {**self._sums, **self._health}.items()}
        averaged = dict(zip(means, mean_over_ranks(torch.stack(list(means.values()))).tolist(), strict=True))
        used = mean_over_ranks(self._used)
        self._used_in_epoch += used
        elapsed = time.perf_counter() - self._since
        loss = sum(averaged[name] for name in self._sums)
        metrics: dict[str, Any] = {"step": step, "loss": loss, **averaged, "lr": lr}
        if len(used):
            share = used / used.sum(dim=1, keepdim=True)
            metrics["perplexity"] = float(torch.exp(-torch.special.xlogy(share, share).sum(dim=1)).mean())
            metrics["codes_used"] = int((used > 0).sum())
            of_images = [image.flatten(1).unique(dim=1).shape[1] for image in self._last_codes]
            metrics["codes_per_image"] = sum(of_images) / len(of_images)
        loaded = self._loader.report()
        metrics["effective_rank"] = float(effective_rank(self._last.cpu()))
        speed = {
            "samples_per_s": self._steps * self._config.data.batch_size / elapsed,
            "data_wait_share": (loaded["wait_s"] - self._waited) / elapsed,
            "bad_samples": len(loaded["bad_samples"]),
            **{f"store/{name}": count for name, count in loaded["store"].items() if loaded["store"]["requests"]},
        }
        if not math.isfinite(metrics["loss"]):
            raise BieStreamError(
                f"the loss is {metrics['loss']} between steps {step - self._steps + 1} and {step}; nothing was saved "
                "since the last checkpoint: lower optimiser.lr, set training.clip_grad_norm, or try precision fp32"
            )
        if self._board:
            with self._metrics.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
            for name, value in {**metrics, **speed}.items():
                if name != "step":
                    self._board.add_scalar(name, value, step)
            self._board.flush()
            print(self._line(step, metrics, speed), flush=True)
            self._warn(alarms({**metrics, **speed}, self._config.model, len(self._last)))
        self._reset()

    def end_epoch(self, step: int) -> None:
        """Shows what is of a whole epoch; of one that was resumed, what came since."""
        if self._board and len(self._used_in_epoch):
            self._board.add_scalar("epoch/codes_used", int((self._used_in_epoch > 0).sum()), step)
        self._used_in_epoch.zero_()

    def _warn(self, found: list[str]) -> None:
        """Says what was not said at the last logging step."""
        for alarm in found:
            if alarm.partition(":")[0] not in self._warned:
                _log.warning("%s", alarm)
        self._warned = {alarm.partition(":")[0] for alarm in found}

    def _line(self, step: int, metrics: dict[str, Any], speed: dict[str, float]) -> str:
        steps = int(self._config.training.steps)
        left = (time.perf_counter() - self._began) / (step - self._first_step) * (steps - step)
        parts = " ".join(f"{name} {metrics[name]:.4f}" for name in self._sums)
        codes = f" | perplexity {metrics['perplexity']:.0f} of {self._codes[1]}" if "perplexity" in metrics else ""
        bad = f" | {speed['bad_samples']:.0f} bad samples" if speed["bad_samples"] else ""
        return (
            f"step {step}/{steps} {step / steps:.0%} | loss {metrics['loss']:.4f} ({parts}){codes} "
            f"| {speed['samples_per_s'] * self._config.data.views:.1f} images/s "
            f"| data wait {speed['data_wait_share']:.1%}{bad} | lr {metrics['lr']:.2e} "
            f"| {int(left) // 60}:{int(left) % 60:02d} left"
        )

    def images(self, step: int, images: Tensor, output: Tensor, show: int = 4) -> None:
        """Input (left) and reconstruction (right) of some images, one channel a row block."""
        if self._board:
            self._board.add_image("input_and_reconstruction", side_by_side(images[:show], output[:show]), step)

    def close(self) -> None:
        if self._board:
            self._board.close()


def side_by_side(images: Tensor, output: Tensor) -> Tensor:
    """[1, B · Y, C · 2 · X] in 0..1: each row an image, each channel as input then reconstruction.

    Both are scaled alike, by the input's 1st and 99.8th percentile.
    """
    images, output = images.float().cpu(), output.float().cpu()
    flat = images.flatten(2)
    low, high = (torch.quantile(flat, q, dim=2)[:, :, None, None] for q in (0.01, 0.998))
    both = torch.stack([images, output], dim=2)  # B, C, 2, Y, X
    scaled = ((both - low[:, :, None]) / (high - low).clamp_min(1e-6)[:, :, None]).clamp(0, 1)
    batch, channels, two, height, width = scaled.shape
    return scaled.permute(0, 3, 1, 2, 4).reshape(1, batch * height, channels * two * width)


def _cut(path: Path, step: int) -> None:
    """Drops the lines after a step: a resumed run writes them again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
