from pathlib import Path

import numpy as np
import tifffile

from bie_stream import synth
from shardgen.studies import STUDIES, demo

PLATE = synth.Plate(seed=5, wells_per_phenotype=1, fields=2, size=48, name="tiny")


def test_what_is_found_in_the_demo_is_what_was_rendered(tmp_path: Path) -> None:
    archive = demo.find(demo.write(tmp_path / "raw", PLATE))
    layout = synth.layout(PLATE)
    assert tuple(channel.name for channel in archive.channels) == synth.CHANNELS
    assert {(f.well, f.field) for f in archive.fields} == {(well, str(field)) for well in layout for field in (1, 2)}
    assert archive.labels == {("tiny", well): {"phenotype": phenotype} for well, phenotype in layout.items()}
    assert (archive.study, archive.licence, archive.pixel_size_um) == ("demo", "CC0-1.0", synth.PIXEL_SIZE_UM)
    for field in archive.fields:
        rendered = synth.render(PLATE, field.well, layout[field.well], int(field.field))
        assert rendered.dtype == np.uint16
        for (plane,), pixels in zip(field.planes, rendered, strict=True):
            np.testing.assert_array_equal(tifffile.imread(Path(archive.files.root, plane.path)), pixels)


def test_writing_again_mends_what_is_missing_and_keeps_the_rest(tmp_path: Path) -> None:
    raw = demo.write(tmp_path / "raw", PLATE)
    before = {path: path.read_bytes() for path in raw.iterdir()}
    tiffs = sorted(raw.glob("*.tif"))
    tiffs[0].unlink()
    kept = tiffs[-1].stat().st_mtime_ns
    demo.write(raw, PLATE)
    assert {path: path.read_bytes() for path in raw.iterdir()} == before
    assert tiffs[-1].stat().st_mtime_ns == kept


def test_every_study_says_what_it_is() -> None:
    for name, study in STUDIES.items():
        assert name.isidentifier()
        assert study.title
        assert study.licence
        assert study.channels
        assert study.labels
