"""Where the archives are: defaults, and how a user says otherwise.

--endpoint idr_files=http://mirror/IDR        first
SHARDGEN_IDR_FILES=http://mirror/IDR          then
the table [endpoints] of the TOML file that SHARDGEN_CONFIG names, or of ~/.config/shardgen.toml
"""

import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bie_stream.errors import SourceError, nearest


class Endpoints(BaseModel):
    """Base URLs.

    Attributes:
        idr_metadata: raw files of IDR's GitHub repositories.
        idr_files: images of IDR; what its own tables call `/uod/idr/filesets`.
        omero: IDR's OMERO web gateway.
        biostudies: what holds `api/v1` and `files` of the BioImage Archive.
        s3: for `s3://bucket/key`, read anonymously.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    idr_metadata: str = "https://raw.githubusercontent.com"
    idr_files: str = "https://ftp.ebi.ac.uk/pub/databases/IDR"
    omero: str = "https://idr.openmicroscopy.org"
    biostudies: str = "https://www.ebi.ac.uk/biostudies"
    s3: str = "https://s3.amazonaws.com"


def resolve(options: Iterable[str] = (), environment: Mapping[str, str] = os.environ) -> Endpoints:
    """Endpoints as the user has them.

    Raises:
        SourceError: an unknown name, no URL, or a file that is no TOML.
    """
    known = list(Endpoints.model_fields)
    found = _from_file(environment)
    said = {name: environment.get(f"SHARDGEN_{name.upper()}") for name in known}
    found |= {name: url for name, url in said.items() if url}
    for option in options:
        name, equals, url = option.partition("=")
        if not equals:
            raise SourceError(f"--endpoint {option!r} should look like idr_files=https://host/path")
        found[name.strip()] = url.strip()
    for name, url in found.items():
        if name not in known:
            raise SourceError(f"{name!r} is not an endpoint; {nearest(name, known)}")
        if not url.startswith(("http://", "https://")):
            raise SourceError(f"endpoint {name} is {url!r}; expected a URL that starts with http:// or https://")
    return Endpoints(**{name: url.rstrip("/") for name, url in found.items()})


def _from_file(environment: Mapping[str, str]) -> dict[str, str]:
    given = environment.get("SHARDGEN_CONFIG")
    path = Path(given) if given else Path(environment.get("HOME", "/"), ".config", "shardgen.toml")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("endpoints", {})
    except FileNotFoundError as error:
        if given:
            raise SourceError(f"SHARDGEN_CONFIG names {path}, which is not there") from error
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not TOML: {error}") from error
    return {str(name): str(url) for name, url in table.items()}
