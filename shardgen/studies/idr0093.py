"""idr0093: HeLa cells, genome-wide siRNA screen of RNA production and cell size (Mueller et al. 2021)."""

import functools
import posixpath

from shardgen.archive import Layout
from shardgen.files import Files
from shardgen.sources import cellvoyager
from shardgen.studies import idr
from shardgen.studies.study import Study


def _read(images: Files, path: str, plate: str, metadata: Files) -> Layout:
    """The path names the plate's `.wpi`, which is not always called after the plate; its folder is what counts."""
    return cellvoyager.find(images, posixpath.dirname(idr.on_server(path)), plate)


SCREEN = idr.Screen(
    name="idr0093-mueller-perturbation/screenA",
    repository="IDR/idr0093-mueller-perturbation",
    folder="",
    channels=("DAPI (DNA)", "Alexa568 (PCNA)", "EU-Alexa488 (Nascent RNA)", "Alexa647 (Succinimidyl ester)"),
    read=_read,
)
STUDY = Study(
    title="genome-wide siRNA screen of RNA production and cell size",
    licence="CC BY 4.0",
    size="83 plates, 31,872 wells, 934,020 planes of 2560 x 2160, 10.3 TB",
    channels=SCREEN.channels,
    labels=("Gene Symbol", "Control Type", "Phenotype"),
    find=functools.partial(idr.find, SCREEN),
)
