"""The demo: a procedural plate, written as an ordinary raw archive (per-channel TIFFs, a CSV of labels), then found
in that folder like any other."""

import csv
from pathlib import Path

import tifffile
from tqdm import tqdm

from bie_stream import synth
from bie_stream.atomic import atomic_file
from bie_stream.errors import SourceError
from shardgen.archive import Archive
from shardgen.files import open_files
from shardgen.labels import labels_of, parse_table
from shardgen.request import Request
from shardgen.select import Selection, select
from shardgen.sources import tiff_folder
from shardgen.studies.study import Study

PLATE = synth.Plate()
PATTERN = "{plate}_{well}_s{field}_w{channel}.tif"


def fetch(request: Request) -> Archive:
    """Writes what is not there yet of the raw archive, and finds its fields."""
    if request.raw is None:
        raise SourceError(
            "the demo is drawn when it is built: shardgen build demo --out shards/demo; then what it drew can be "
            f"planned: shardgen plan shards/demo-raw --pattern '{PATTERN}' --labels shards/demo-raw/wells.csv"
        )
    return find(write(request.raw, PLATE))


def write(raw: Path, plate: synth.Plate) -> Path:
    """Writes the plate as TIFFs and `wells.csv`; files that are there already are kept."""
    wells = synth.layout(plate)
    for well, phenotype in tqdm(wells.items(), unit="well", desc="raw archive", dynamic_ncols=True, disable=None):
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
    files = open_files(raw)
    layout = tiff_folder.find(files, PATTERN)
    table = parse_table(files.read("wells.csv"), "wells.csv")
    archive = Archive(
        files=files,
        study="demo",
        source="shardgen build demo",
        channels=layout.channels,
        fields=layout.fields,
        labels=labels_of(table, ((field.plate, field.well) for field in layout.fields)),
        licence="CC0-1.0",
        citation="bie-stream, procedural plate",
        pixel_size_um=synth.PIXEL_SIZE_UM,
    )
    return select(archive, Selection(channels=names))


STUDY = Study(
    title="a procedural plate of 5 phenotypes, for trying everything without a download",
    licence="CC0-1.0",
    size="1 plate, 60 wells, 240 fields of 3 x 256 x 256 uint16, 94 MB",
    channels=synth.CHANNELS,
    labels=("phenotype",),
    find=fetch,
)
