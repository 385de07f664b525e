"""`README.md` of an exported encoder: a model card as the Hugging Face hub reads it."""

from typing import Any

import yaml

from bie_stream.encoder import STATISTICS, EncoderInfo

_NORMALISATION = {
    "dataset": "(x − mean) / standard deviation of each channel of the training set; inside the graph",
    "image": "as the training set's statistics have it, then each channel of each image on its own to mean 0 and "
    "variance 1; inside the graph",
    "plate": "(x − mean) / standard deviation of each channel of the image's plate. A graph cannot know a plate's "
    "numbers: **the graph takes pixels that are normalised already**; `bie_stream.Encoder` does it from the dataset",
    "none": "none",
}


def card(info: EncoderInfo, differences: dict[str, float]) -> str:
    """The text.

    Args:
        differences: of each file's embeddings from those of the model, relative to their largest number.
    """
    return "\n\n".join(
        [_front_matter(info), _what(info), _use(info), _input(info), _training(info), _validation(differences)]
    ) + "\n"  # fmt: skip


def _front_matter(info: EncoderInfo) -> str:
    facts: dict[str, Any] = {"license": info.weights_licence.lower()} if info.weights_licence else {}
    facts |= {
        "library_name": "bie-stream",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["microscopy", "bioimage", "self-supervised", info.trained["model"]["kind"], "onnx", "safetensors"],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False).strip()}\n---"


def _what(info: EncoderInfo) -> str:
    licence = info.weights_licence or "**not chosen by who exported them**"
    return f"""# {info.title} on {info.study}

The encoder of a {info.title}, trained without labels: an image of microscopy in, one vector of {info.features} \
numbers out.

| | |
|---|---|
| data | {info.study}{f", {info.source}" if info.source else ""} |
| licence of the data | {info.licence or "not stated by the dataset"} |
| cite the data as | {info.citation or "not stated by the dataset"} |
| licence of these weights | {licence} |
| trained for | {info.step} steps, bie-stream {info.code} |"""


def _use(info: EncoderInfo) -> str:
    return f"""## How to use

With `pip install 'bie-stream[encoder]'`, on a dataset of shards (`shardgen build`):

```python
import bie_stream
encoder = bie_stream.Encoder("exported/")
plates = bie_stream.open("shards/{info.study}", channels=encoder.channels)
features = encoder.embed(plates)  # [N, {"F" if info.any_channels else info.features}] float32, in the order of \
plates.table
```

| file | |
|---|---|
| `encoder.onnx` | any ONNX runtime; what follows is in its metadata, too |
| `encoder.pt2` | `torch.export.load(…).module()`, in PyTorch. That function unpickles: load only what you trust |
| `model.safetensors`, `config.json` | all weights, decoder included; `train.export.load` in a checkout of bie-stream |
| `rdf.yaml`, `test_*.npy` | bioimage.io's description, and what it is tested with |"""


def _input(info: EncoderInfo) -> str:
    pixels = f"{info.pixel_size_um:g} µm" if info.pixel_size_um else "not stated by the dataset"
    rows = "\n".join(
        f"| {number} | {name} | {of.mean:.6g} | {of.std:.6g} |"
        for number, (name, of) in enumerate(zip(info.channels, info.statistics, strict=True))
    )
    channels = "These, in this order, and no others."
    if info.any_channels:
        channels = "Any, in any number; it was trained with these."
    if info.takes_statistics:
        channels += (
            f" The graph is told of each its mean and standard deviation over the dataset, as `{STATISTICS}` [C, 2]."
        )
    return f"""## Input

`pixels` [B, C, Y, X] float32, in the numbers of the microscope ({info.dtype or "of a type not stated"} in training), \
not rescaled. Y and X are multiples of {info.stride} from {info.smallest}; pixels of {pixels} in training.

Normalisation: {_NORMALISATION[info.normalise]}.

Channels: {channels}

| | channel | mean | standard deviation |
|---|---|---|---|
{rows}"""


def _training(info: EncoderInfo) -> str:
    return f"""## Training

```yaml
{yaml.safe_dump(info.trained, sort_keys=False, allow_unicode=True).strip()}
```

## Limits

- It has seen {info.study} and nothing else. Of other stains, microscopes, magnifications or cells an embedding comes \
out all the same; whether it says anything, a labelled set must show.
- Batches and plates leave their mark in an embedding. Judge it in folds that keep them whole.
- Not for diagnosis."""


def _validation(differences: dict[str, float]) -> str:
    rows = "\n".join(f"| `{name}` | {value:.1e} |" for name, value in differences.items())
    return f"""## Validation

Largest difference from the model that was trained, relative to the largest number of its embedding, on random pixels \
in batches of 1 and 3:

| file | difference |
|---|---|
{rows}

What the embedding is worth on data with labels: `python -m train evaluate` in a checkout of bie-stream, beside \
random weights, mean intensity and permuted labels."""
