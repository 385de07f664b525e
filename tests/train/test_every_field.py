"""No field of the configuration is ignored: each, changed alone, ends a short run in another state."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from safetensors.torch import save_file

from train import checkpoint, engine
from train.config import Section, load_config
from train.run import main

# What has no part in what is learned, and the test that shows what it is for.
ELSEWHERE = {
    "run_dir": "test_run", "data.path": "test_run", "data.weights": "test_run",
    "data.backend": "bie_stream/test_loader",
    "data.threads": "bie_stream/test_loader", "data.prefetch_batches": "bie_stream/test_loader",
    "data.max_bad_fraction": "bie_stream/test_faults", "training.log_every": "test_run",
    "training.image_every": "test_run", "training.checkpoint_every": "test_run",
    "readout.layer": "test_run", "readout.pooling": "test_run",
}  # fmt: skip
CONTRAST: dict[str, Any] = {"of": "replicates", "label": "phenotype", "weight": 1.0}
OF_ALL: dict[str, Any] = {
    "data.split": "train", "data.channels": ["DNA", "Actin"], "data.batch_size": 8, "data.views": 2, "data.crop": 16,
    "data.normalise": "dataset", "data.augment.crop_anywhere": False, "data.augment.flip": False,
    "data.augment.quarter_turn": False, "data.augment.rotate_deg": 20.0, "data.augment.scale": [0.8, 1.2],
    "data.augment.gain": 0.3, "data.augment.offset": 0.3, "data.augment.drop_channel": 0.5, "data.augment.noise": 0.2,
    "data.augment.blur_px": 2.0, "data.augment.defocus_px": 2.0,
    "optimiser.name": "lamb", "optimiser.lr": 2e-3, "optimiser.weight_decay": 0.1,
    "optimiser.betas": [0.5, 0.9],
    "schedule.name": "poly", "schedule.warmup_steps": 2, "schedule.cooldown_steps": 2, "schedule.warmup_lr": 1e-4,
    "schedule.min_lr": 1e-4,
    "training.steps": 4, "training.seed": 1, "training.precision": "bf16", "training.clip_grad_norm": 0.01,
}  # fmt: skip
OF_LATENT: dict[str, Any] = {
    "model.channels": "expand", "model.contrast": CONTRAST, "model.reconstruction": "l1", "model.ssim": 0.3,
    "model.fourier": 0.3, "model.latent_dim": 12,
}  # fmt: skip
OF_TIMM: dict[str, Any] = OF_LATENT | {
    "model.encoder": "resnet34", "model.pretrained": "PRETRAINED", "model.stem": "small", "model.stride": 16,
    "model.decoder": "mirror", "model.decoder_width": 16,
}  # fmt: skip
TIMM: dict[str, Any] = {"stride": 8, "latent_dim": 8, "decoder_width": 8}
BOOK = {"kind": "ema", "codes": 16}
# Families that are there for a part of the model's section.
PARTS = {
    "contrast": "model.contrast.",
    **dict.fromkeys(("ema", "gradient", "residual", "fsq"), "model.quantiser."),
}
# A model to begin with, and what is changed of it.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ae": ({"kind": "ae", **TIMM}, OF_ALL | OF_TIMM | {"model.kind": "vae"}),
    "contrast": (
        {"kind": "ae", **TIMM, "channels": "expand", "contrast": CONTRAST},
        {"model.contrast.of": "CHANNELS", "model.contrast.label": "well", "model.contrast.weight": 0.5,
         "model.contrast.temperature": 0.5, "model.contrast.similarity": "euclidean"},
    ),
    "vae": (
        {"kind": "vae", **TIMM},
        OF_TIMM | {"model.beta": 0.5, "model.beta_warmup_steps": 3, "model.free_nats": 0.5},
    ),
    "vqvae": ({"kind": "vqvae", **TIMM, "quantiser": BOOK}, OF_TIMM | {"model.quantiser": {"kind": "fsq"}}),
    **{
        kind: (
            {"kind": "vqvae", **TIMM, "quantiser": {**BOOK, "kind": kind}},
            {f"model.quantiser.{name}": value for name, value in changes.items()},
        )
        for books in [{"codes": 32, "decay": 0.5, "commitment": 1.0, "revive_below": 0.99}]
        for kind, changes in {"ema": books, "gradient": books, "residual": books | {"levels": 2}}.items()
    },
    "fsq": ({"kind": "vqvae", **TIMM, "quantiser": {"kind": "fsq"}}, {"model.quantiser.levels": [5, 5]}),
    "zalando": (
        {"kind": "zalando", "num_hiddens": 16, "latent_dim": 8, "quantiser": BOOK},
        OF_LATENT | {"model.num_hiddens": 32, "model.num_residual_layers": 1, "model.num_residual_hiddens": 8,
                     "model.quantiser": {"kind": "fsq"}},
    ),
    "mae": (
        {"kind": "mae", "size": "tiny", "patch": 8, "decoder_width": 32, "decoder_depth": 1},
        {"model.size": "small", "model.patch": 16, "model.channels": "agnostic", "model.mask_ratio": 0.5,
         "model.normalise_patches": False, "model.fourier": 0.3, "model.drop_path": 0.5, "model.layer_scale": 0.1,
         "model.decoder_width": 64, "model.decoder_depth": 2, "model.decoder_heads": 4, "model.contrast": CONTRAST},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


class Runs:
    """Short runs of a family; the unchanged one is made once."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.unchanged: dict[str, str] = {}

    def state(self, family: str, changes: dict[str, Any]) -> str:
        """A hash of the last checkpoint."""
        run_dir = self.folder / f"{family}-{len(list(self.folder.iterdir()))}"
        tree = {
            "run_dir": str(run_dir),
            "data": {"path": str(self.data), "split": None, "batch_size": 4, "crop": 32, "threads": 1},
            "model": FAMILIES[family][0],
            "schedule": {"warmup_steps": 1},
            "training": {"steps": 5, "precision": "fp32", "log_every": 5, "image_every": 5, "checkpoint_every": 5},
        }
        file = self.folder / f"{run_dir.name}.yaml"
        file.write_text(yaml.safe_dump(tree))
        main(file, [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in changes.items()])
        saved = checkpoint.load(run_dir)
        assert saved is not None
        digest = hashlib.sha256(repr(saved.plain).encode())
        for name, tensor in sorted(saved.tensors.items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DS_ACCELERATOR", "cpu")
        patch.setattr(engine, "stop", lambda: None)  # DeepSpeed joins its processes once in a Python
        yield Runs(tmp_path_factory.mktemp("runs"), tiny)
    engine.stop()
    os.environ.clear()
    os.environ.update(before)


CASES = [(family, name) for family, (_, changes) in FAMILIES.items() for name in changes]


@pytest.mark.parametrize(("family", "name"), CASES, ids=lambda value: value)
def test_each_field_changes_what_a_run_ends_in(family: str, name: str, runs: Runs, pretrained: Path) -> None:
    value = FAMILIES[family][1][name]
    changes = {name: str(pretrained) if value == "PRETRAINED" else value}
    if value == "CHANNELS":
        changes = {name: "channels", "model.contrast.label": None}
    if name == "model.stem":
        changes["model.stride"] = 2
    if name == "model.decoder":
        changes["model.decoder_width"] = 64
    if family not in runs.unchanged:
        runs.unchanged[family] = runs.state(family, {})
    assert runs.state(family, changes) != runs.unchanged[family]


def test_the_same_configuration_ends_in_the_same_state(runs: Runs) -> None:
    assert runs.state("vqvae", {}) == runs.state("vqvae", {})


def test_no_field_is_forgotten_here(tmp_path: Path) -> None:
    of_parts = {name for family in PARTS for name in FAMILIES[family][1]}
    for family, (model, changes) in FAMILIES.items():
        tree = {"run_dir": "x", "data": {"path": "x"}, "model": model, "training": {"steps": 100}}
        file = tmp_path / f"{family}.yaml"
        file.write_text(yaml.safe_dump(tree))
        fields = set(_fields(load_config(file)))
        if family in PARTS:
            fields = {name for name in fields if name.startswith(PARTS[family])}
        known = {
            *changes,
            *OF_ALL,
            *ELSEWHERE,
            *(() if family in PARTS else of_parts),
            "model.kind",
            "model.quantiser.kind",
        }
        assert fields <= known, fields - known


def _fields(section: Section, at: str = "") -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _fields(value, f"{at}{name}.")
        else:
            yield f"{at}{name}"
