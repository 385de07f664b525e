"""A contact sheet: some samples as a person would look at them, one channel a column."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from bie_stream.atomic import atomic_file
from bie_stream.dataset import Dataset

_GAP, _TEXT = 4, 14


def contact_sheet(dataset: Dataset, out: Path, rows: int = 6, tile: int = 160) -> None:
    """Writes a PNG: `rows` samples spread evenly over the dataset, each channel scaled to its own 1..99.9 %."""
    picked = np.unique(np.linspace(0, len(dataset) - 1, rows).round().astype(int))
    cell = tile + _GAP
    sheet = Image.new("L", (len(dataset.channels) * cell + _GAP, len(picked) * (cell + _TEXT) + _TEXT + _GAP), 255)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(dataset.channels):
        draw.text((_GAP + column * cell, 1), name, fill=0)
    for line, sample in enumerate(picked):
        top = _TEXT + line * (cell + _TEXT)
        for column, (pixels, statistics) in enumerate(zip(dataset[int(sample)], dataset.statistics, strict=True)):
            low, high = statistics.percentiles["1"], statistics.percentiles["99.9"]
            image = Image.fromarray(_grey(pixels, low, high)).resize((tile, tile), Image.Resampling.BILINEAR)
            sheet.paste(image, (_GAP + column * cell, top))
        draw.text((_GAP, top + tile), _caption(dataset, int(sample)), fill=0)
    with atomic_file(out) as path:
        sheet.save(path, format="PNG")


def _caption(dataset: Dataset, sample: int) -> str:
    row = dataset.table.slice(sample, 1).to_pylist()[0]
    labels = [str(row[name]) for name in dataset.manifest.labels if row[name] is not None]
    return " ".join([row["plate"], row["well"], f"f{row['field']}", row["split"], *labels])


def _grey(pixels: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.uint8]:
    scaled = (pixels.astype(np.float32) - low) / max(high - low, 1e-6)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)
