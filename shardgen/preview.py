"""A contact sheet: some samples as a person would look at them, one channel a column."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from bie_stream.atomic import atomic_file
from bie_stream.dataset import Dataset

_GAP, _TEXT = 4, 14


def contact_sheet(dataset: Dataset, out: Path, rows: int = 6, tile: int = 160) -> None:
    """Writes a PNG: `rows` samples spread evenly over the dataset, each channel scaled to its own 1..99.9 %, and with
    its labels, those that are not the same everywhere.

    Args:
        tile: pixels on the longer side of a sample.
    """
    picked = np.unique(np.linspace(0, len(dataset) - 1, rows).round().astype(int))
    cell = tile + _GAP
    sheet = Image.new("L", (len(dataset.channels) * cell + _GAP, len(picked) * (cell + _TEXT) + _TEXT + _GAP), 255)
    draw = ImageDraw.Draw(sheet)
    telling = [name for name in dataset.manifest.labels if len(dataset.table[name].unique()) > 1]
    for column, name in enumerate(dataset.channels):
        draw.text((_GAP + column * cell, 1), _cut(draw, name, tile), fill=0)
    for line, sample in enumerate(picked):
        top, images = _TEXT + line * (cell + _TEXT), dataset[int(sample)]
        height, width = (max(1, round(tile * side / max(images.shape[1:]))) for side in images.shape[1:])
        for column, (pixels, statistics) in enumerate(zip(images, dataset.statistics, strict=True)):
            if statistics is None:
                continue  # a channel that is absent
            low, high = statistics.percentiles["1"], statistics.percentiles["99.9"]
            image = Image.fromarray(_grey(pixels, low, high)).resize((width, height), Image.Resampling.BILINEAR)
            sheet.paste(image, (_GAP + column * cell, top))
        caption = _cut(draw, _caption(dataset, int(sample), telling), sheet.width - 2 * _GAP)
        draw.text((_GAP, top + height), caption, fill=0)
    with atomic_file(out) as path:
        sheet.save(path, format="PNG")


def _caption(dataset: Dataset, sample: int, telling: list[str]) -> str:
    row = dataset.table.slice(sample, 1).to_pylist()[0]
    labels = [str(row[name]) for name in telling if row[name] is not None]
    return " ".join([row["plate"], row["well"], f"f{row['field']}", row["split"], *labels])


def _cut(draw: Any, text: str, width: int) -> str:
    """As much of a text as fits into so many pixels, in one line."""
    text = " ".join(text.split())
    if draw.textlength(text) <= width:
        return text
    while text and draw.textlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _grey(pixels: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (pixels.astype(np.float32) - low) / max(high - low, 1e-6)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)
