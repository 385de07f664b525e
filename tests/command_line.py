"""Commands as a user types them."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
CPU = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def write_config(path: Path, data: Path, run_dir: Path, kind: str = "vqvae", **training: object) -> Path:
    """A configuration small enough for a test: 16 codes or none, 4 samples a batch, fp32."""
    model: dict[str, object] = {"kind": kind, "stride": 8, "latent_dim": 8, "decoder_width": 8}
    if kind == "vqvae":
        model["quantiser"] = {"codes": 16}
    if kind == "mae":
        model = {"kind": kind, "size": "tiny", "patch": 8, "decoder_width": 32, "decoder_depth": 1}
    config = {
        "run_dir": str(run_dir),
        "data": {"path": str(data), "split": None, "batch_size": 4, "crop": 32},
        "model": model,
        "schedule": {"warmup_steps": 2},
        "training": {
            "steps": 12,
            "precision": "fp32",
            "log_every": 1,
            "image_every": 4,
            "checkpoint_every": 4,
            **training,
        },
    }
    path.write_text(yaml.safe_dump(config))
    return path


def command(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command at the root of the checkout."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**CPU, **(env or {})},
        text=True,
        capture_output=True,
        timeout=300,
    )
