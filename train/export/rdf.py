"""`rdf.yaml`: the resource description of bioimage.io, format 0.5, of a model with `encoder.onnx` as its weights.

The run's own weights are not offered as a PyTorch state dict: that entry needs an architecture that others can import.
Authors are not named, because nobody has said who they are.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bioimageio.spec
import numpy as np
import yaml
from bioimageio.spec.model import v0_5

from bie_stream.encoder import EMBEDDING, ONNX, PIXELS, STATISTICS, EncoderInfo
from bie_stream.errors import ConfigError

Axes = list[dict[str, Any]]


def write_rdf(info: EncoderInfo, opset: int, tensors: dict[str, np.ndarray[Any, Any]], folder: Path) -> None:
    """Writes test tensors and the description, and holds it against its own specification.

    Args:
        tensors: pixels, statistics if the graph takes them, and the embedding of these.

    Raises:
        ConfigError: the specification refuses it.
    """
    for name, tensor in tensors.items():
        np.save(folder / _file(name), tensor, allow_pickle=False)
    (folder / "rdf.yaml").write_text(
        yaml.safe_dump(_description(info, opset, tensors), sort_keys=False, allow_unicode=True)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        checked = bioimageio.spec.load_description(folder / "rdf.yaml", perform_io_checks=True)
    if checked.validation_summary.status == "failed":
        faults = "; ".join(
            f"{'.'.join(map(str, error.loc))}: {error.msg}"
            for detail in checked.validation_summary.details
            for error in detail.errors
        )
        raise ConfigError(f"bioimage.io's specification refuses this encoder: {faults}")


def _file(tensor: str) -> str:
    return f"test_{tensor}.npy"


def _description(info: EncoderInfo, opset: int, tensors: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    axes: dict[str, Axes] = {
        PIXELS: _axes_of_pixels(info),
        STATISTICS: [{"type": "channel", "channel_names": list(info.channels)}, {"type": "index", "size": 2}],
        EMBEDDING: [{"type": "batch"}, {"type": "index", "size": info.features}],
    }
    about = {
        PIXELS: "normalised by plate" if info.normalise == "plate" else "as the microscope gave them",
        STATISTICS: "mean and standard deviation of each channel over the dataset",
        EMBEDDING: "one vector per image",
    }
    described = {name: _tensor(name, about[name], axes[name], tensors[name].dtype.name) for name in tensors}
    if tensors[PIXELS].dtype != np.float32:
        described[PIXELS]["preprocessing"] = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    return {
        "format_version": v0_5.ModelDescr.implemented_format_version,
        "type": "model",
        "name": plain(f"{info.title} on {info.study}")[:64].strip(),
        "description": f"Encoder of a {info.title}, trained on {info.study} without labels: "
        "images of fluorescence microscopy to one vector each."[:1000],
        "documentation": {"source": "README.md"},
        **({"license": info.weights_licence} if info.weights_licence else {}),
        **({"cite": cite} if (cite := _cite(info.citation)) else {}),
        "tags": ["2d", "fluorescence-light-microscopy", "feature-extraction", "autoencoder", "onnx"],
        "inputs": [described[name] for name in tensors if name != EMBEDDING],
        "outputs": [described[EMBEDDING]],
        "weights": {"onnx": {"source": ONNX, "opset_version": opset}},
    }


def _axes_of_pixels(info: EncoderInfo) -> Axes:
    scale = {"unit": "micrometer", "scale": info.pixel_size_um} if info.pixel_size_um else {}
    size = {"min": info.smallest, "step": info.stride}
    return [
        {"type": "batch"},
        {"type": "channel", "channel_names": list(info.channels)},
        *({"type": "space", "id": axis, "size": size, **scale} for axis in ("y", "x")),
    ]


def _tensor(name: str, about: str, axes: Sequence[dict[str, Any]], dtype: str) -> dict[str, Any]:
    return {
        "id": name, "description": about, "axes": list(axes), "data": {"type": dtype},
        "test_tensor": {"source": _file(name)},
    }  # fmt: skip


def plain(text: str) -> str:
    """With the letters that bioimage.io allows in a name."""
    return re.sub(r"[^A-Za-z0-9_+\-() ]", "-", text)


def _cite(citation: str | None) -> list[dict[str, str]]:
    """What the manifest cites, where it names a DOI: an entry needs one."""
    doi = re.search(r"\b10\.\d{4,9}/[^\s,;]+", citation or "")
    return [{"text": f"Data: {citation}", "doi": doi.group().rstrip(".)")}] if doi else []
