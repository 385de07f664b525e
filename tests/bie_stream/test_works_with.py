"""The loader in other people's loops, each in a few lines as a user would write them; and without DALI at all."""

import importlib.util
import logging
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bie_stream

needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="lightning is not installed")
needs_accelerate = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is missing")


def _loader(path: Path, **more: Any) -> bie_stream.Loader:
    return bie_stream.Loader(bie_stream.open(path), 5, crop=32, threads=2, **more)


def _model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 4, 2, 1))


def test_a_plain_loop_of_torch(plate_dataset: Path) -> None:
    model = _model()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    loader = _loader(plate_dataset)
    for _ in range(10):
        for batch in loader:
            loss = nn.functional.mse_loss(model(batch.images), batch.images)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert len(losses) == 20
    assert losses[-1] < losses[0]


@needs_lightning
def test_a_trainer_of_lightning(plate_dataset: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.seen = _model(), 0

        def training_step(self, batch: bie_stream.Batch, _: int) -> torch.Tensor:
            self.seen += len(batch.images)
            return nn.functional.mse_loss(self.model(batch.images), batch.images)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    module, loader = Module(), _loader(plate_dataset)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, use_distributed_sampler=False,
        )  # fmt: skip
        trainer.fit(module, loader)
    assert module.seen == 20
    assert loader.state_dict() == {"seed": 0, "epoch": 2, "consumed": 0}


@needs_accelerate
def test_a_loop_of_accelerate(plate_dataset: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = _model()
    model, optimiser = accelerator.prepare(model, torch.optim.Adam(model.parameters()))
    loader = _loader(plate_dataset, rank=accelerator.process_index, world_size=accelerator.num_processes)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for batch in loader:
        loss = nn.functional.mse_loss(model(batch.images), batch.images)
        accelerator.backward(loss)
        optimiser.step()
        optimiser.zero_grad()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert loader.state_dict()["epoch"] == 1


def test_where_dali_is_not_installed_everything_else_works_and_asking_for_it_says_so(plate_dataset: Path) -> None:
    code = """
        import sys
        sys.modules["nvidia.dali"] = None  # so that importing it fails, as on macOS and Windows
        import bie_stream
        plates = bie_stream.open(sys.argv[1])
        assert bie_stream.Loader(plates, 5, crop=32).backend == "native"
        assert sum(len(batch.images) for batch in bie_stream.Loader(plates, 5, crop=32)) == 10
        try:
            bie_stream.Loader(plates, 5, crop=32, backend="dali")
        except bie_stream.DatasetError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(plate_dataset)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "back end 'dali' needs NVIDIA DALI (Linux): pip install 'bie-stream[dali]'" in done.stdout


def test_opening_a_dataset_brings_in_neither_torch_nor_dali(plate_dataset: Path) -> None:
    code = """
        import sys, bie_stream
        bie_stream.open(sys.argv[1])[0]
        print({"torch", "nvidia.dali", "timm"} & {*sys.modules})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(plate_dataset)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
