"""Tiny plates on disk."""

from pathlib import Path

import pytest

from bie_stream import synth
from shardgen.build import build
from shardgen.pixels import probe
from shardgen.plan import Options, make_plan
from shardgen.select import Selection, select
from shardgen.studies import demo


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 samples of 3 x 64 x 64 in 20 wells, 4 of each phenotype: channels DNA, Actin, Protein."""
    return _built(tmp_path_factory.mktemp("tiny"), Selection())


@pytest.fixture(scope="session")
def two_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without Actin."""
    return _built(tmp_path_factory.mktemp("two"), Selection(channels={"Protein": "Protein", "DNA": "DNA"}))


def _built(folder: Path, chosen: Selection) -> Path:
    plate = synth.Plate(wells_per_phenotype=4, fields=1, size=64)
    archive = select(demo.find(demo.write(folder / "raw", plate)), chosen)
    build(make_plan(archive, Options(), *probe(archive)), folder / "shards", workers=1)
    return folder / "shards"
