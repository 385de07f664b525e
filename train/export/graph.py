"""A model as a graph from the pixels of a microscope to an embedding: `encoder.pt2` (torch.export), `encoder.onnx`.

    pixels [B, C, Y, X] float32 ─▶ normalised, as `bie_stream.normalise` defines ─▶ model ─▶ embedding [B, F] float32

B, Y and X may be any, Y and X multiples of the model's stride. A model whose channels may be any takes a second input,
[C, 2], each one's mean and standard deviation: `dataset` is nothing without them, and of `image` they are the floor of
the variance (the mean falls out). By plate the numbers are each plate's own: that graph takes pixels that are
normalised already.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from bie_stream.encoder import EMBEDDING, PIXELS, STATISTICS, EncoderInfo
from bie_stream.errors import ConfigError
from bie_stream.normalise import IMAGE_VARIANCE_FLOOR, normalisation
from train.config import Readout
from train.models import Model

_OPSET = 20  # of ONNX: the first in which GELU is one operator
_LARGEST_BYTES = 2**31 - 2**20  # of a protobuf, less what is not weights


class FromPixels(nn.Module):
    """Pixels → embedding."""

    shift: Tensor  # [C, 1, 1]
    scale: Tensor

    def __init__(self, model: Model, info: EncoderInfo) -> None:
        super().__init__()
        self.model, self.takes_statistics = model, info.takes_statistics
        self.readout = Readout.model_validate({"layer": info.layer, "pooling": info.pooling})
        self.in_graph, self.per_image = info.normalise != "plate", info.normalise == "image"
        kind = info.normalise if self.in_graph and not info.takes_statistics else "none"
        by = normalisation(kind, info.channels, info.statistics)
        self.register_buffer("shift", torch.from_numpy(by.shift[0, :, None, None]))
        self.register_buffer("scale", torch.from_numpy(by.scale[0, :, None, None]))

    def forward(self, pixels: Tensor, statistics: Tensor | None = None) -> Tensor:
        return self.model.embed(self._normalised(pixels, statistics), self.readout)

    def _normalised(self, pixels: Tensor, statistics: Tensor | None) -> Tensor:
        if statistics is not None:
            pixels = (pixels - statistics[:, :1, None]) / statistics[:, 1:, None]
        elif self.in_graph and not self.takes_statistics:
            pixels = (pixels - self.shift) * self.scale
        if self.per_image:
            pixels = pixels - _mean(pixels)
            pixels = pixels / (_mean(pixels.square()) + IMAGE_VARIANCE_FLOOR).sqrt()
        return pixels


def _mean(images: Tensor) -> Tensor:
    """[B, C, 1, 1]: of rows, then of those. A runtime may add numbers one after the other in float32, which shows over
    a million of them."""
    return images.mean(dim=3, keepdim=True).mean(dim=2, keepdim=True)


def traced(model: Model, info: EncoderInfo) -> ExportedProgram:
    """The graph for any sizes, with the weights that it uses and no others: decoders stay behind."""
    encoder = FromPixels(copy.deepcopy(model).cpu(), info).eval()
    for name in _unused(_trace(encoder, info)):
        owner, _, own = name.rpartition(".")
        delattr(encoder.get_submodule(owner), own)
    program = _trace(encoder, info)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that wrote it
    return program


def _trace(encoder: FromPixels, info: EncoderInfo) -> ExportedProgram:
    rows, columns = Dim("rows", min=1), Dim("columns", min=1)
    sizes: dict[int, Any] = {0: Dim("batch", min=1), 2: info.stride * rows, 3: info.stride * columns}
    shapes: dict[str, dict[int, Any] | None] = {PIXELS: sizes, STATISTICS: None}
    channels = len(info.channels)
    if info.any_channels:
        sizes[1] = Dim("channels", min=1)
        channels = max(channels, 2)  # of one channel the graph would be for one
    # Two images of two sizes that are not each other's: what is 1, or alike, would be taken for constant, or for one.
    examples: tuple[Tensor, ...] = (torch.rand(2, channels, 4 * info.stride, 6 * info.stride),)
    if info.takes_statistics:
        examples += (torch.ones(channels, 2),)
        shapes[STATISTICS] = {0: sizes[1]}
    else:
        del shapes[STATISTICS]
    with torch.no_grad():
        return torch.export.export(encoder, examples, dynamic_shapes=shapes, strict=False)


def _unused(program: ExportedProgram) -> Iterator[str]:
    """Names of the weights and buffers that nothing in the graph reads."""
    held = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    return (held[node.name] for node in program.graph.nodes if node.name in held and not node.users)


def write_pt2(program: ExportedProgram, info: EncoderInfo, path: Path) -> None:
    """For torch.export.load; what it is lies inside as `config.json`."""
    torch.export.save(program, path, extra_files={"config.json": info.model_dump_json(indent=2)})


def write_onnx(program: ExportedProgram, info: EncoderInfo, path: Path) -> None:
    """One file, weights included; what it is lies inside as metadata.

    Raises:
        ConfigError: the weights are too many for one file.
    """
    if (size := sum(weight.nbytes for weight in program.state_dict.values())) > _LARGEST_BYTES:
        raise ConfigError(f"an ONNX file holds 2 GiB at most, and this encoder has {size / 2**30:.1f} GiB of weights")
    inputs = [PIXELS, STATISTICS] if info.takes_statistics else [PIXELS]
    written = torch.onnx.export(
        program, dynamo=True, external_data=False, opset_version=_OPSET, input_names=inputs,
        output_names=[EMBEDDING], verbose=False,
    )  # fmt: skip
    assert written is not None, "of a program there is always one"
    model = written.model_proto
    _forget_origin(model)
    _name_sizes(model, info)
    onnx.helper.set_model_props(model, info.metadata())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Takes out where in whose code each node comes from: paths of the machine that wrote it."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _name_sizes(model: onnx.ModelProto, info: EncoderInfo) -> None:
    channels = "channels" if info.any_channels else None
    names: dict[str, list[str | None]] = {PIXELS: ["batch", channels, "y", "x"], STATISTICS: [channels, None]}
    names[EMBEDDING] = ["batch", "features" if info.any_channels else None]
    for value in (*model.graph.input, *model.graph.output):
        for size, name in zip(value.type.tensor_type.shape.dim, names[value.name], strict=True):
            if name is not None:
                size.dim_param = name
    del model.graph.value_info[:]  # they speak of the sizes by the names before
