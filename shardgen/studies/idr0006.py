"""idr0006: HeLa cells, 15,483 tagged ORFs, proteins in nuclear bodies (Fong et al. 2013). Not for commercial use."""

import functools
import posixpath

from shardgen.archive import Layout
from shardgen.files import Files
from shardgen.sources import imagexpress
from shardgen.studies import idr
from shardgen.studies.study import Study


def _read(images: Files, path: str, plate: str, metadata: Files) -> Layout:
    return imagexpress.find(images, posixpath.dirname(idr.on_server(path)), plate)


SCREEN = idr.Screen(
    name="idr0006-fong-nuclearbodies/screenA",
    repository="IDR/idr0006-fong-nuclearbodies",
    folder="",
    channels=("DAPI", "TRITC"),
    read=_read,
)
STUDY = Study(
    title="nuclear bodies, 15,483 tagged ORFs in HeLa cells",
    licence="CC BY-NC-SA 3.0",
    size="169 plates, 16,224 wells, 481,696 planes of 1392 x 1040, 1.4 TB",
    channels=SCREEN.channels,
    labels=("Gene Symbol", "Phenotype 1"),
    find=functools.partial(idr.find, SCREEN),
)
