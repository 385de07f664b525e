"""The demo: a procedural plate, written as an ordinary raw archive (per-channel TIFFs, a CSV of labels), then found
in that folder like any other."""

import csv
from dataclasses import replace
from pathlib import Path

import tifffile
from tqdm import tqdm

from bie_stream import synth
from bie_stream.atomic import atomic_file
from shardgen.archive import Archive
from shardgen.sources import tiff_folder

SUMMARY = "a procedural plate of 5 phenotypes: 60 wells, 240 fields of 3 x 256 x 256 uint16, CC0"
PLATE = synth.Plate()
PATTERN = "{plate}_{well}_s{field}_w{channel}.tif"


def fetch(raw: Path) -> Archive:
    """Writes what is not there yet of the raw archive into `raw`, and finds its fields."""
    return find(write(raw, PLATE))


def write(raw: Path, plate: synth.Plate) -> Path:
    """Writes the plate as TIFFs and `wells.csv`; files that are there already are kept."""
    wells = synth.layout(plate)
    for well, phenotype in tqdm(wells.items(), unit="well", desc="raw archive", dynamic_ncols=True):
        letter, number = well[0], int(well[1:])
        for field in range(1, plate.fields + 1):
            files = [raw / f"{plate.name}_{letter}{number:02d}_s{field}_w{w}.tif" for w in range(1, 4)]
            if all(file.exists() for file in files):
                continue
            for file, pixels in zip(files, synth.render(plate, well, phenotype, field), strict=True):
                with atomic_file(file) as path:
                    tifffile.imwrite(path, pixels, metadata=None)
    with atomic_file(raw / "wells.csv") as path, path.open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["plate", "well", "phenotype"])
        writer.writerows((plate.name, well, phenotype) for well, phenotype in wells.items())
    return raw


def find(raw: Path) -> Archive:
    """The fields of a raw archive that `write` wrote."""
    names = {str(w): name for w, name in enumerate(synth.CHANNELS, start=1)}
    archive = tiff_folder.find(raw, PATTERN, labels=raw / "wells.csv", channels=names)
    return replace(
        archive, study="demo", source="shardgen build demo", licence="CC0-1.0", pixel_size_um=synth.PIXEL_SIZE_UM,
        citation="bie-stream, procedural plate",
    )  # fmt: skip
