"""idr0036: U2OS cells, 1600 compounds, Cell Painting (Gustafsdottir et al. 2013; also BBBC022)."""

import functools
import posixpath

from shardgen.archive import Layout
from shardgen.files import Files
from shardgen.sources import screen
from shardgen.studies import idr
from shardgen.studies.study import Study


def _read(images: Files, path: str, plate: str, metadata: Files) -> Layout:
    """plates.tsv names a file of patterns, relative to the screen's folder."""
    where = posixpath.normpath(posixpath.join(posixpath.dirname(SCREEN.stem), path))
    return screen.parse(metadata.read(where).decode("utf-8"), plate, where, "/uod/idr/filesets/")


SCREEN = idr.Screen(
    name="idr0036-gustafsdottir-cellpainting/screenA",
    repository="IDR/idr-metadata",
    folder="idr0036-gustafsdottir-cellpainting",
    channels=("ERSyto", "ERSytoBleed", "Hoechst", "Mito", "Ph_golgi"),
    read=_read,
)
STUDY = Study(
    title="Cell Painting of 1600 compounds in U2OS cells",
    licence="CC0 1.0",
    size="20 plates, 7,680 wells, 345,600 planes of 696 x 520, 0.2 TB",
    channels=SCREEN.channels,
    labels=("Compound Name", "Control Type", "Phenotype 1"),
    find=functools.partial(idr.find, SCREEN),
)
