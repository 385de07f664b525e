"""The only file that imports DeepSpeed: processes, data parallelism, precision, optimiser, schedule.

ZeRO stage 0: every process holds the whole model, and gradients are averaged. What we keep DeepSpeed from doing,
each a trap that was seen to be silent: clipping at 1.0 by default; stepping a timm scheduler with the wrong number;
compiling a C++ extension on CPU that only inference uses; starting from different buffers on different ranks.
"""

import logging
import os
import socket
import warnings
from dataclasses import dataclass, replace
from typing import Any

import timm.optim
import timm.scheduler
import torch
import torch.distributed as dist
from torch import Tensor

from train.config import Config
from train.models import Model, Output


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device


def start() -> World:
    """Joins the processes that the launcher started; alone if there was no launcher."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=_free_port())
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    rank, local_rank, size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    if on_gpu:
        torch.cuda.set_device(local_rank)
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_SIZE", size))))
    deepspeed = _deepspeed()
    if not on_gpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else a 100 s build that training never uses
    deepspeed.init_distributed(verbose=False)
    return World(rank, size, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))


def stop() -> None:
    """Leaves the processes; without it torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def bf16_is_faster(device: torch.device) -> bool:
    """Whether bfloat16 is the faster precision: on GPUs that compute it in hardware, and on CPUs with AMX.

    AVX-512's own bf16 instructions are not enough: measured on a Xeon that has them without AMX, the convolutions of
    a ResNet-18 ran at half the speed of float32, and a training step took 1.5 times as long.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


class Engine:
    """A model in training.

    Attributes:
        precision: `bf16` or `fp32`, resolved.
    """

    def __init__(self, config: Config, model: Model, world: World) -> None:
        self.config, self.world, self.model = config, world, model.to(world.device)
        asked = config.training.precision
        self.precision = ("bf16" if bf16_is_faster(world.device) else "fp32") if asked == "auto" else asked
        given = config.optimiser
        betas = {"betas": given.betas} if given.betas else {}
        optimiser = timm.optim.create_optimizer_v2(
            model, given.name, lr=given.lr, weight_decay=given.weight_decay, **betas
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of DeepSpeed about its own calls into torch
            self._engine, self.optimiser, _, _ = _deepspeed().initialize(
                model=self.model, optimizer=optimiser, config=self._deepspeed_config(), dist_init_required=False
            )
        schedule = config.schedule
        warmup, cooldown = int(schedule.warmup_steps), int(schedule.cooldown_steps)
        self._scheduler, _ = timm.scheduler.create_scheduler_v2(  # prefix: what is given as its length is the decay's
            optimiser, schedule.name, num_epochs=int(config.training.steps) - warmup - cooldown, warmup_epochs=warmup,
            warmup_prefix=True, warmup_lr=schedule.warmup_lr, min_lr=schedule.min_lr, step_on_epochs=False,
            updates_per_epoch=1,
        )  # fmt: skip

    def _deepspeed_config(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": self.config.data.batch_size // self.world.size,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self.config.training.clip_grad_norm or 0.0,
            "zero_optimization": {"stage": 0},
            "torch_autocast": {"enabled": self.precision == "bf16", "dtype": "bfloat16"},
            "steps_per_print": 10**9,
        }

    @property
    def lr(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def step(
        self, number: int, images: Tensor, groups: Tensor | None = None, present: Tensor | None = None
    ) -> Output:  # fmt: skip
        """One update from this rank's images; arguments as `Model.forward` has them.

        Randomness within it is a function of (seed, number), so a resumed run draws what an unbroken one would.

        Returns:
            what the model gave for this rank's images; nothing of it holds on to gradients.
        """
        torch.manual_seed((self.config.training.seed << 32) + number)
        self._scheduler.step_update(number)
        images = images.contiguous(memory_format=torch.channels_last)
        groups = None if groups is None else groups.to(images.device)
        output: Output = self._engine(images, step=number, groups=groups, present=present)
        self._engine.backward(torch.stack(list(output.losses.values())).sum())
        self._engine.step()
        losses = {name: loss.detach() for name, loss in output.losses.items()}
        return replace(output, losses=losses)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, present: Tensor | None = None) -> Tensor:
        """[B, C, Y, X], with the model as in evaluation."""
        self.model.eval()
        output: Tensor = self.model(images, present=present).reconstruction
        self.model.train()
        return output

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs besides step and loader: tensors by name, and plain numbers.

        Tensors are `model.<parameter or buffer>` and `optimiser.<parameter number>.<moment>`: nothing in them
        depends on the number of processes.
        """
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        saved = self.optimiser.state_dict()
        scalars: dict[str, Any] = {}
        for number, moments in saved["state"].items():
            for name, value in moments.items():
                (tensors if isinstance(value, Tensor) else scalars)[f"optimiser.{number}.{name}"] = value
        groups = [{k: v for k, v in group.items() if isinstance(v, int | float)} for group in saved["param_groups"]]
        return tensors, {"scalars": scalars, "groups": groups}

    def load_state(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        prefix = "model."
        self.model.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        state: dict[int, dict[str, Any]] = {}
        for name, value in {**tensors, **plain["scalars"]}.items():
            if name.startswith("optimiser."):
                _, number, moment = name.split(".", 2)
                state.setdefault(int(number), {})[moment] = value
        fresh = self.optimiser.state_dict()["param_groups"]
        groups = [{**group, **saved} for group, saved in zip(fresh, plain["groups"], strict=True)]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean of each value over all processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def barrier() -> None:
    """Waits for all processes."""
    if dist.is_initialized():
        dist.barrier()


def _deepspeed() -> Any:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed  # here: it takes seconds, and `--check` does not need it

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])
