"""Planning a study of a million fields: seconds and memory, from its listing to the plan's hash.

    python -m bench.plan [FIELDS] [CHANNELS]

The listing is made up (plates of 384 wells of 9 fields, a file for each channel); all that follows is what
`shardgen plan` does, but for the header of one plane.
"""

import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from shardgen.archive import Archive, well_name
from shardgen.labels import Table, labels_of
from shardgen.plan import Options, describe, make_plan
from shardgen.select import Selection, select
from shardgen.sources import tiff_folder

ROWS, COLUMNS, FIELDS_OF_WELL = 16, 24, 9
OF_PLATE = ROWS * COLUMNS * FIELDS_OF_WELL
WELLS = [well_name(row, column) for row in range(ROWS) for column in range(COLUMNS)]


@dataclass(frozen=True)
class Listing:
    """Folders of plates that list their files, as a disk or a server would."""

    fields: int
    channels: int
    root: str = "made up"
    at_once: int = 1

    def list(self, folder: str = "") -> list[str]:
        """Names in a folder."""
        if not folder:
            return [f"{plate:04d}/" for plate in range(-(-self.fields // OF_PLATE))]
        left = min(OF_PLATE, self.fields - int(folder) * OF_PLATE)
        return [
            f"{WELLS[number // FIELDS_OF_WELL]}_s{number % FIELDS_OF_WELL + 1}_w{channel}.tif"
            for number in range(left) for channel in range(1, self.channels + 1)
        ]  # fmt: skip

    def size(self, path: str) -> int:
        """None of its files is there."""
        raise FileNotFoundError(path)

    def read(self, path: str, first: int = 0, last: int | None = None) -> bytes:
        """None of its files is there."""
        raise FileNotFoundError(path)


def stages(fields: int, channels: int) -> Iterator[str]:
    """Runs them; the name of each when it is done."""
    files = Listing(fields, channels)
    layout = tiff_folder.find(files, "{plate}/{well}_s{field}_w{channel}.tif")
    yield "fields found"
    wells = list(dict.fromkeys((field.plate, field.well) for field in layout.fields))
    rows = tuple((plate, well, f"gene {n % 12000}", "control" * (n % 16 == 0)) for n, (plate, well) in enumerate(wells))
    labels = labels_of(Table("wells.csv", ("plate", "well", "gene", "control"), rows), wells)
    yield "labels read"
    archive = Archive(files, "made up", "made up", layout.channels, layout.fields, labels=labels)
    archive = select(archive, Selection())
    yield "fields selected"
    plan = make_plan(archive, Options(folds=5, stratify_by="control"), "uint16", (2160, 2560))
    yield "planned: splits, folds, shards, hash"
    describe(plan, "")
    yield f"described: {plan.fields} fields, {plan.planes} planes, {len(plan.shards)} shards"


def main(fields: int = 1_000_000, channels: int = 4) -> None:
    """Prints a table: seconds since the start, and the most memory until then."""
    start = time.monotonic()
    for stage in stages(fields, channels):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kB on Linux
        print(f"| {stage} | {time.monotonic() - start:.1f} s | {peak:.2f} GB |")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
