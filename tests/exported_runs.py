"""Run directories as `train.py` leaves them, of models that nobody has trained: an export does not care."""

from pathlib import Path

import torch

import bie_stream
from train import checkpoint
from train.config import Config
from train.models import build

CONVOLUTIONS = {"stride": 8, "latent_dim": 8, "decoder_width": 8}
TRANSFORMER = {"kind": "mae", "size": "tiny", "patch": 8, "decoder_width": 32, "decoder_depth": 1}
Sections = dict[str, object]
FAMILIES: dict[str, tuple[Sections, str, Sections]] = {  # model, normalisation, read-out: one of each
    "ae": ({"kind": "ae", **CONVOLUTIONS}, "dataset", {}),
    "vae by plate": ({"kind": "vae", **CONVOLUTIONS}, "plate", {"layer": 2, "pooling": "mean+std"}),
    "vqvae": ({"kind": "vqvae", "quantiser": {"codes": 16}, **CONVOLUTIONS}, "image", {}),
    "expanded": ({"kind": "ae", "channels": "expand", **CONVOLUTIONS}, "dataset", {"pooling": "max"}),
    "mae": (TRANSFORMER, "none", {"layer": 6}),
    "any channels": ({"channels": "agnostic", **TRANSFORMER}, "image", {}),
}


def write_run(run_dir: Path, data: Path, family: str) -> Path:
    """A run of one checkpoint. Running means and variances of norms are of some images, not those of birth."""
    model, normalise, readout = FAMILIES[family]
    section = {"path": str(data), "split": None, "crop": 32, "normalise": normalise}
    config = Config.model_validate(
        {"run_dir": run_dir, "data": section, "model": model, "training": {"steps": 100}, "readout": readout}
    )
    dataset = bie_stream.open(data)
    torch.manual_seed(0)
    built = build(config.model, len(dataset.channels)).train()
    images = torch.randn(4, len(dataset.channels), 64, 64)
    for _ in range(3):
        built(images * torch.rand(4, 1, 1, 1) * 2)
    checkpoint.prepare(config, checkpoint.RunInfo.of([dataset]))
    tensors = {f"model.{name}": weight for name, weight in built.state_dict().items()}
    checkpoint.save(run_dir, checkpoint.Checkpoint(42, {}, tensors, {}))
    return run_dir
