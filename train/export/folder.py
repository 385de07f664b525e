"""Run directory → a folder of files that is an encoder, whole and checked, or none.

model.safetensors   all weights, decoder included
config.json         what it is (`bie_stream.encoder.EncoderInfo`): with the weights, all that rebuilds the model
encoder.pt2         graph for PyTorch
encoder.onnx        graph for everything else, `bie_stream.Encoder` included
rdf.yaml, test_*.npy  for bioimage.io
README.md           a model card
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

import bie_stream
from bie_stream.atomic import atomic_folder
from bie_stream.encoder import EMBEDDING, ONNX, PIXELS, STATISTICS, EncoderInfo, onnx_runtime
from bie_stream.errors import ConfigError
from train.checkpoint import RunInfo, load_model, steps
from train.config import AnyModelConfig, Config
from train.export.card import card
from train.export.graph import FromPixels, traced, write_onnx, write_pt2
from train.export.rdf import write_rdf
from train.models import Model, build

PT2, WEIGHTS, CONFIG = "encoder.pt2", "model.safetensors", "config.json"
TOLERANCE = 1e-4  # of embeddings, relative to their largest number
Tensors = dict[str, np.ndarray[Any, Any]]


def export_run(run_dir: Path, out: Path, weights_licence: str | None = None) -> EncoderInfo:
    """Writes the model of a run, with its last weights.

    Args:
        weights_licence: SPDX identifier.

    Raises:
        ConfigError: there is no such run, or it cannot be exported.
    """
    model, config, run = load_model(run_dir)
    if out.exists() and not (out / CONFIG).is_file():
        raise ConfigError(f"{out} is there and is no exported encoder; choose another --out")
    if len(run.datasets) > 1 and config.data.normalise == "dataset":
        raise ConfigError(
            "the run is on several datasets, each normalised by its own statistics (data.normalise dataset): an "
            "encoder knows one set of them; train with image, plate or none to export"
        )
    info = _info(model, config, run, steps(run_dir)[-1], weights_licence)
    with atomic_folder(out) as folder:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(info.model_dump_json(indent=2) + "\n")
        program = traced(model, info)
        write_pt2(program, info, folder / PT2)
        write_onnx(program, info, folder / ONNX)
        tests = [_inputs(info, *shape) for shape in ((1, 8, 8), (3, 4, 2))]
        differences = _compared(FromPixels(model, info).eval(), tests, folder)
        opset = onnx.load(folder / ONNX, load_external_data=False).opset_import[0].version
        write_rdf(info, opset, {**tests[0], EMBEDDING: _run(folder, tests[0])}, folder)
        (folder / "README.md").write_text(card(info, differences))
    return info


def load(folder: Path) -> tuple[Model, EncoderInfo]:
    """The whole model again, decoder included, for evaluation.

    Raises:
        ConfigError: there is no exported encoder, or not of this version.
    """
    try:
        info = EncoderInfo.model_validate_json((folder / CONFIG).read_bytes())
        config: AnyModelConfig = TypeAdapter(AnyModelConfig).validate_python(info.trained["model"])
    except (FileNotFoundError, KeyError) as error:
        raise ConfigError(f"no exported encoder at {folder}: {CONFIG} is missing, or says no model") from error
    except ValidationError as error:
        raise ConfigError(f"{folder / CONFIG} is not of this version: {error.errors()[0]['msg']}") from error
    model = build(config, len(info.channels))
    model.load_state_dict(load_file(folder / WEIGHTS))
    return model.eval(), info


def _info(model: Model, config: Config, run: RunInfo, step: int, weights_licence: str | None) -> EncoderInfo:
    trained = config.model_dump(mode="json", exclude={"run_dir": True, "data": {"path", "backend", "threads"}})
    if isinstance(getattr(config.model, "pretrained", False), Path):
        trained["model"]["pretrained"] = Path(trained["model"]["pretrained"]).name
    stride, channels = config.model.stride, len(run.channels)
    with torch.inference_mode():
        images = torch.zeros(1, channels, 2 * stride, 2 * stride)
        features = model.embed(images, config.readout).shape[1]
    return EncoderInfo(
        code=bie_stream.__version__, title=config.model.title, channels=run.channels,
        any_channels=config.model.kind_of_channels != "stack",
        statistics=run.statistics, normalise=config.data.normalise, stride=stride, smallest=2 * stride,
        layer=config.readout.layer, pooling=config.readout.pooling, features=features, dtype=run.dtype,
        pixel_size_um=run.pixel_size_um, study=run.study, source=run.source, licence=run.licence,
        citation=run.citation, plan_sha256=run.plan_sha256, weights_licence=weights_licence, step=step, trained=trained,
    )  # fmt: skip


def _inputs(info: EncoderInfo, batch: int, rows: int, columns: int) -> Tensors:
    """Noise with each channel's mean and standard deviation, in the microscope's dtype: no pixels of the data."""
    shape = (batch, len(info.channels), rows * info.stride, columns * info.stride)
    noise = np.random.default_rng(0).standard_normal(shape)
    if info.normalise == "plate":
        return {PIXELS: noise.astype(np.float32)}
    statistics = np.array([(each.mean, each.std) for each in info.statistics])
    pixels = noise * statistics[:, 1, None, None] + statistics[:, 0, None, None]
    dtype = np.dtype(info.dtype or "float32")
    if dtype.kind == "u":
        pixels = pixels.round().clip(0, np.iinfo(dtype).max)
    inputs = {PIXELS: pixels.astype(dtype)}
    return {**inputs, STATISTICS: statistics.astype(np.float32)} if info.takes_statistics else inputs


def _compared(model: FromPixels, tests: list[Tensors], folder: Path) -> dict[str, float]:
    """How far each graph is from the model.

    Raises:
        ConfigError: further than it may be.
    """
    graph = torch.export.load(folder / PT2).module()  # written a moment ago, by ourselves
    differences = dict.fromkeys((ONNX, PT2), 0.0)
    with torch.inference_mode():
        for inputs in tests:
            given = [torch.from_numpy(tensor.astype(np.float32)) for tensor in inputs.values()]
            expected = model(*given).numpy()
            for name, found in ((ONNX, _run(folder, inputs)), (PT2, graph(*given).numpy())):
                apart = float(np.abs(found - expected).max() / np.abs(expected).max())
                differences[name] = max(differences[name], apart)
                if not apart <= TOLERANCE:
                    raise ConfigError(f"{name} differs from the model by {apart:.1e} of its embedding: not exported")
    return differences


def _run(folder: Path, inputs: Tensors) -> np.ndarray[Any, Any]:
    session = onnx_runtime().InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {k: v.astype(np.float32) for k, v in inputs.items()})[0]
    return found
