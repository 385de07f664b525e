from pathlib import Path

import pytest

from bie_stream.errors import SourceError
from shardgen.endpoints import Endpoints, resolve


def test_the_defaults_are_the_archives_themselves(tmp_path: Path) -> None:
    assert resolve((), {"HOME": str(tmp_path)}) == Endpoints()
    assert Endpoints().idr_files == "https://ftp.ebi.ac.uk/pub/databases/IDR"


def test_an_option_goes_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    config = tmp_path / "shardgen.toml"
    config.write_text('[endpoints]\nomero = "http://file/"\nidr_files = "http://file"\ns3 = "http://file"\n')
    environment = {"SHARDGEN_CONFIG": str(config), "SHARDGEN_IDR_FILES": "http://env", "SHARDGEN_S3": "http://env"}
    found = resolve(["s3=http://option"], environment)
    assert (found.omero, found.idr_files, found.s3) == ("http://file", "http://env", "http://option")
    assert found.biostudies == Endpoints().biostudies


def test_the_users_own_file_is_found(tmp_path: Path) -> None:
    (tmp_path / ".config").mkdir()
    (tmp_path / ".config" / "shardgen.toml").write_text('[endpoints]\nomero = "https://mirror"\n')
    assert resolve((), {"HOME": str(tmp_path)}).omero == "https://mirror"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("omro=http://x", "did you mean 'omero'"),
        ("omero", "should look like"),
        ("omero=ftp://x", "expected a URL that starts with http"),
    ],
)
def test_an_endpoint_that_cannot_be_used_is_refused(tmp_path: Path, option: str, said: str) -> None:
    with pytest.raises(SourceError) as caught:
        resolve([option], {"HOME": str(tmp_path)})
    assert said in str(caught.value)


def test_a_file_that_is_named_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not there"):
        resolve((), {"SHARDGEN_CONFIG": str(tmp_path / "absent.toml")})
    (tmp_path / "bad.toml").write_text("endpoints = [")
    with pytest.raises(SourceError, match="is not TOML"):
        resolve((), {"SHARDGEN_CONFIG": str(tmp_path / "bad.toml")})
