"""Work on several processes that are joined as training joins them."""

import socket
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import multiprocessing


def on_ranks(ranks: int, work: Callable[..., None], *args: Any) -> None:
    """Calls work(rank, *args) in each of so many processes, over gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_joined, (ranks, port, work, args), nprocs=ranks)


def _joined(rank: int, ranks: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    work(rank, *args)
    dist.destroy_process_group()
