import pytest
from archive_server import DATA

from bie_stream.errors import SourceError
from shardgen.studies.idr import citation, on_server, plate_paths, study_facts

METADATA = DATA / "idr_metadata"
real = pytest.mark.skipif(not METADATA.is_dir(), reason="the studies' real metadata are not beside this checkout")


@real
@pytest.mark.parametrize(
    ("study", "screen", "plates", "first"),
    [
        ("idr0006", "screenA", 169, "11001"),  # name, path
        ("idr0036", "screenA", 20, "20585"),
        ("idr0093", "screenA", 83, "001"),  # path, name
        ("idr0094", "screenA", 64, "ESP0025769"),
        ("idr0094", "screenB", 102, "ESP0025712"),
    ],
)
def test_plates_are_found_whichever_column_holds_the_path(study: str, screen: str, plates: int, first: str) -> None:
    table = (METADATA / study / screen / f"{study}-{screen}-plates.tsv").read_bytes()
    found = plate_paths(table, study)
    assert len(found) == plates
    assert all("/" in path and "/" not in name for name, path in found.items())
    assert list(found) == sorted(found)
    assert next(iter(found)) == first


@real
def test_the_path_of_a_plate_is_as_it_is_written_not_as_its_name_would_have_it() -> None:
    found = plate_paths((METADATA / "idr0093/screenA/idr0093-screenA-plates.tsv").read_bytes(), "idr0093")
    assert found["082"].endswith("/05_batch/082/No Response Detected.wpi")


@real
@pytest.mark.parametrize(
    ("study", "licence"),
    [("idr0006", "CC BY-NC-SA 3.0"), ("idr0036", "CC0 1.0"), ("idr0093", "CC BY 4.0"), ("idr0094", "CC0 1.0")],
)
def test_licence_and_citation_are_those_of_the_study(study: str, licence: str) -> None:
    facts = study_facts((METADATA / study / f"{study}-study.txt").read_bytes())
    assert facts["Study License"] == licence
    assert "https://doi.org/" in (citation(facts) or "").replace("http://dx.doi.org/", "https://doi.org/")


def test_a_line_that_is_no_plate_is_refused() -> None:
    for text in (b"001\n", b"001\t002\n", b"a/b\tc/d\n", b"001\ta/b\tc\n"):
        with pytest.raises(SourceError, match="is not a plate and its path"):
            plate_paths(text, "idr0001")


def test_only_paths_of_the_server_are_taken() -> None:
    assert on_server("/uod/idr/filesets/idr0006-x/a b/c.HTD") == "idr0006-x/a b/c.HTD"
    with pytest.raises(SourceError, match="is not on IDR's server"):
        on_server("/etc/passwd")
