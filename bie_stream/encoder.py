"""An exported encoder over a dataset: whole samples in, one embedding of each out. Needs no training code.

`encoder.onnx` is run, by ONNX Runtime, and not `encoder.pt2`: what torch.export.load reads it may unpickle (weights and
constants that say so, custom objects, example inputs), it evaluates expressions of sizes as Python, and calls whatever
a graph names in torch's modules. An ONNX file is a protobuf of standard operators, read and run without any of that;
weights in other files are refused.
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from bie_stream.codecs import Dtype
from bie_stream.dataset import Dataset
from bie_stream.errors import ConfigError, DatasetError, nearest
from bie_stream.loader import Loader
from bie_stream.normalise import Normalise, normalisation
from bie_stream.shards import ChannelStatistics

ONNX = "encoder.onnx"
PIXELS, STATISTICS, EMBEDDING = "pixels", "statistics", "embedding"  # inputs and output of the graph
Device = Literal["auto", "cpu", "cuda"]


class EncoderInfo(BaseModel):
    """What an encoder says of itself: `config.json`, and in the metadata of `encoder.onnx` each field as JSON.

    Attributes:
        code: version of bie-stream that wrote it.
        title: what it is, in some words.
        channels: that it was trained with, in order.
        any_channels: whether it takes others too, in any number.
        statistics: of each channel, over the dataset it was trained with.
        normalise: see `bie_stream.normalise`. The graph does it, except by plate, whose numbers a graph cannot know.
        stride: pixels; both sides of an image are multiples of it.
        smallest: side of the smallest image, pixels.
        layer, pooling: of the model's features that the embedding is; layer None for the last one.
        features: numbers in the embedding of one image with the channels that it was trained with.
        dtype, pixel_size_um, study, source, licence, citation, plan_sha256: of the dataset it was trained with.
        weights_licence: SPDX identifier; None where nobody has chosen one.
        step: of the training, that the weights are of.
        trained: the sections of the configuration it was trained with, without places of files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["bie-stream encoder"] = "bie-stream encoder"
    version: Literal[1] = 1
    code: str
    title: str
    channels: tuple[str, ...]
    any_channels: bool
    statistics: tuple[ChannelStatistics, ...]
    normalise: Normalise
    stride: int
    smallest: int
    layer: int | None
    pooling: str
    features: int
    dtype: Dtype | None
    pixel_size_um: float | None
    study: str
    source: str | None
    licence: str | None
    citation: str | None
    plan_sha256: str
    weights_licence: str | None
    step: int
    trained: dict[str, Any]

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> Self:
        if len(self.statistics) != len(self.channels):
            raise ValueError(f"{len(self.statistics)} statistics of {len(self.channels)} channels")
        return self

    @property
    def takes_statistics(self) -> bool:
        """Whether the graph must be told mean and standard deviation of each channel: of channels that may be any, it
        cannot know them."""
        return self.any_channels and self.normalise in ("dataset", "image")

    def metadata(self) -> dict[str, str]:
        """Each field as JSON."""
        return {name: json.dumps(value, ensure_ascii=False) for name, value in self.model_dump(mode="json").items()}

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "EncoderInfo":
        """The inverse of `metadata`; raises ValueError where it is not that."""
        return cls.model_validate({name: json.loads(value) for name, value in metadata.items()})


class Encoder:
    """An encoder that `python -m train export` wrote.

    Args:
        folder: with `encoder.onnx`.
        device: `auto` is a GPU if torch and ONNX Runtime both see one.

    Raises:
        ConfigError: there is no encoder that this version can run, or ONNX Runtime is missing, or the device is.
    """

    def __init__(self, folder: str | Path, device: Device = "auto") -> None:
        onnxruntime = onnx_runtime()
        path = Path(folder) / ONNX
        if not path.is_file():
            raise ConfigError(f"no encoder at {folder}: {ONNX} is missing; `python -m train export` writes one")
        self._device = _device(device, onnxruntime.get_available_providers())
        # TF32 would round what is multiplied to 10 bits, against the 23 that the embedding was validated with.
        on = {"cpu": "CPUExecutionProvider", "cuda": ("CUDAExecutionProvider", {"use_tf32": 0})}[self._device.type]
        try:
            # From memory, so that there is no folder that weights in other files could be of.
            self._session = onnxruntime.InferenceSession(path.read_bytes(), providers=[on])
            self.info = EncoderInfo.of(self._session.get_modelmeta().custom_metadata_map)
        except ValidationError as error:
            fault = error.errors()[0]
            at = ".".join(map(str, fault["loc"]))
            raise ConfigError(f"{path} is no encoder that this version can run: {at}: {fault['msg']}") from error
        except Exception as error:  # of ONNX Runtime, each of a class of its own
            raise ConfigError(f"{path} cannot be run: {' '.join(str(error).split())[:300]}") from error

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels that it was trained with, in order: what `bie_stream.open` takes."""
        return self.info.channels

    def embed(self, dataset: Dataset, batch_size: int = 64) -> npt.NDArray[np.float32]:
        """[N, F], in the order of `dataset.table`: whole samples, unaugmented.

        Raises:
            DatasetError: the dataset has other channels or sizes than the encoder takes, or cannot be read.
        """
        self._require_channels(dataset)
        self._require_sizes(dataset)
        loader = Loader(
            dataset, min(batch_size, len(dataset)), training=False, device=self._device, dtype=torch.float32,
            normalise="plate" if self.info.normalise == "plate" else "none",
        )  # fmt: skip
        statistics = self._statistics(dataset) if self.info.takes_statistics else None
        return np.concatenate([self._run(batch.images, statistics)[batch.valid.numpy()] for batch in loader])

    def _run(self, pixels: torch.Tensor, statistics: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
        pixels = pixels.contiguous()
        if pixels.is_cuda:
            torch.cuda.current_stream(pixels.device).synchronize()  # ONNX Runtime has a stream of its own
        binding = self._session.io_binding()
        at = pixels.device.index or 0
        binding.bind_input(PIXELS, pixels.device.type, at, np.float32, list(pixels.shape), pixels.data_ptr())
        if statistics is not None:
            binding.bind_cpu_input(STATISTICS, statistics)
        binding.bind_output(EMBEDDING, "cpu")
        self._session.run_with_iobinding(binding)
        embedding: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return embedding

    def _statistics(self, dataset: Dataset) -> npt.NDArray[np.float32]:
        """[C, 2] mean and standard deviation: of channels that it was trained with those of its training, as of any
        encoder; of others those of the dataset."""
        known = dict(zip(self.channels, self.info.statistics, strict=True))
        own = zip(dataset.channels, dataset.statistics, strict=True)
        statistics = tuple(known.get(name, found) for name, found in own)
        there = tuple(each for each in statistics if each is not None)  # all are: `_require_channels`
        normalisation(self.info.normalise, dataset.channels, statistics)  # refuses what is constant
        return np.array([(each.mean, each.std) for each in there], np.float32)

    def _require_channels(self, dataset: Dataset) -> None:
        if not all(dataset.present):
            absent = dataset.channels[dataset.present.index(False)]
            raise DatasetError(f"{dataset.folder} has no channel {absent!r}: open it with channels that it has")
        if self.info.any_channels or dataset.channels == self.channels:
            return
        known = [channel.name for channel in dataset.manifest.channels]
        for name in self.channels:
            if name not in known:
                raise DatasetError(
                    f"{dataset.folder} has no channel {name!r}, which the encoder needs; {nearest(name, known)}"
                )
        raise DatasetError(
            f"the dataset is open with channels {', '.join(dataset.channels)}, the encoder takes "
            f"{', '.join(self.channels)}, in that order: bie_stream.open(…, channels=encoder.channels)"
        )

    def _require_sizes(self, dataset: Dataset) -> None:
        stride, smallest = self.info.stride, self.info.smallest
        if not len(dataset):
            raise DatasetError(f"{dataset.folder} has no samples here: nothing to embed")
        (height, width), largest = dataset.shapes.min(axis=0), dataset.shapes.max(axis=0)
        if (height, width) != tuple(largest):
            raise DatasetError(
                f"samples have from {height} x {width} to {largest[0]} x {largest[1]} pixels: embed those of each size "
                "by themselves (plates.select), or build the dataset with --tile"
            )
        if height % stride or width % stride or min(height, width) < smallest:
            fits = max(smallest, min(height, width) // stride * stride)
            raise DatasetError(
                f"samples of {height} x {width} pixels: the encoder takes sides that are multiples of {stride}, from "
                f"{smallest}; build the dataset with --tile {fits}"
            )


def onnx_runtime() -> ModuleType:
    """ONNX Runtime, which from version 1.29 on reports its use to its makers unless it is told not to before its first
    import: so it is told.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ConfigError(
            "an encoder needs ONNX Runtime: pip install 'bie-stream[encoder]', or onnxruntime-gpu"
        ) from error


def _device(device: Device, providers: list[str]) -> torch.device:
    there = torch.cuda.is_available() and "CUDAExecutionProvider" in providers
    if device == "cuda" and not there:
        raise ConfigError(
            f"device 'cuda' needs a GPU that torch sees ({torch.cuda.is_available()}) and ONNX Runtime for CUDA "
            f"(here: {', '.join(providers)}): pip install onnxruntime-gpu, or device='cpu'"
        )
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device {device!r}; known: auto, cpu, cuda")
    return torch.device("cuda" if there and device != "cpu" else "cpu")
