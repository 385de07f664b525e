"""idr0094: Caco-2 cells, SARS-CoV-2, drug repurposing (Ellinger et al. 2021): a screen, and its dose responses."""

import functools

from shardgen.archive import Layout
from shardgen.files import Files
from shardgen.sources import columbus
from shardgen.studies import idr
from shardgen.studies.study import Study

_CHANNELS = ("cell body",)


def _read(images: Files, path: str, plate: str, metadata: Files) -> Layout:
    return columbus.find(images, idr.on_server(path), plate)


def _screen(letter: str) -> idr.Screen:
    return idr.Screen(
        name=f"idr0094-ellinger-sarscov2/screen{letter}",
        repository="IDR/idr0094-ellinger-sarscov2",
        folder="",
        channels=_CHANNELS,
        read=_read,
    )


SCREEN_A = Study(
    title="SARS-CoV-2 in Caco-2 cells, drug repurposing",
    licence="CC0 1.0",
    size="64 plates, 6,144 wells, 55,680 planes of 1080 x 1080, 0.1 TB",
    channels=_CHANNELS,
    labels=("Compound Name", "Control Type", "Percentage Inhibition (DPC)"),
    find=functools.partial(idr.find, _screen("A")),
)
SCREEN_B = Study(
    title="SARS-CoV-2 in Caco-2 cells, dose responses",
    licence="CC0 1.0",
    size="102 plates, 9,792 wells, 88,128 planes of 1080 x 1080, 0.2 TB",
    channels=_CHANNELS,
    labels=("Compound Name", "Compound Concentration (microMolar)", "Percentage Inhibition (DPC)"),
    find=functools.partial(idr.find, _screen("B")),
)
