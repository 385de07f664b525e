"""Studies of the BioImage Archive: TIFFs among the files that a submission lists, by pattern.

    <biostudies>/api/v1/studies/S-BIAD1             page-tab: title, licence, sections with their file lists
    <biostudies>/api/v1/studies/S-BIAD1/info        httpLink: where the files are
    <biostudies>/files/S-BIAD1/<file list>.json     path, size, type of each file
    <httpLink>/Files/<path>                         a file

Facts: EBIBioStudies controllers; BioImage-Archive/bia-integrator, bia_ingest/biostudies/api.py.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bie_stream.errors import SourceError
from shardgen.files import Files, fetch_json, is_url, parse_json
from shardgen.request import Request

_DEEPEST = 50  # of nested sections; real submissions have three or four levels


@dataclass(frozen=True)
class Submission:
    """What a submission says of itself.

    Attributes:
        sizes: of its files, in bytes, by their paths below `files`; None where it is not listed.
    """

    accession: str
    title: str
    licence: str | None
    files: Files
    sizes: Mapping[str, int | None]


def read(accession: str, request: Request) -> Submission:
    """A submission and the files that it lists.

    Raises:
        SourceError: it cannot be read, or lists no file.
    """
    base = f"{request.endpoints.biostudies}"
    page = _page_tab(f"{base}/api/v1/studies/{accession}", accession, request)
    section = page.get("section")
    if not isinstance(section, dict):
        raise SourceError(f"{accession} has no section; expected a page-tab of BioStudies")
    root = fetch_json(f"{base}/api/v1/studies/{accession}/info", request.transfer).get("httpLink")
    if not (isinstance(root, str) and is_url(root)):  # a path would be one on the user's own disk
        raise SourceError(f"{accession}: the httpLink of its info is {root!r}; expected the address of its files")
    sizes = {path: size for part in _sections(section) for path, size in _sizes(part.get("files"))}
    lists = dict.fromkeys(name for part in _sections(section) if (name := _value(part, "File List")))
    for name in lists:
        listed = request.files(f"{base}/files/{accession}").read(
            f"{name.removesuffix('.tsv').removesuffix('.json')}.json"
        )
        sizes.update(_sizes(parse_json(listed, f"{accession} {name}")))
    if not sizes:
        raise SourceError(f"{accession} lists no files")
    attributes = {**_attributes(page), **_attributes(section)}
    return Submission(
        accession, attributes.get("Title", accession), attributes.get("License"),
        request.files(f"{root}/Files"), sizes,
    )  # fmt: skip


def _page_tab(url: str, accession: str, request: Request) -> dict[str, Any]:
    """The submission; since 2025 the address may redirect to it, or only say where it is."""
    page = fetch_json(url, request.transfer)
    link = page.get("ftpHttp_link")
    if "section" not in page and isinstance(link, str):
        page = fetch_json(f"{link.rstrip('/')}/{accession}.json", request.transfer)
    return page


def _sections(section: dict[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """A section and all below it; `subsections` may hold lists of sections."""
    if depth > _DEEPEST:
        raise SourceError(f"sections are nested more than {_DEEPEST} deep")
    yield section
    for part in _flat(section.get("subsections"), depth):
        yield from _sections(part, depth + 1)


def _flat(items: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    if depth > _DEEPEST:
        raise SourceError(f"lists are nested more than {_DEEPEST} deep")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, list):
            yield from _flat(item, depth + 1)
        elif isinstance(item, dict):
            yield item


def _sizes(items: Any) -> Iterator[tuple[str, int | None]]:
    """Path and bytes of each file in a list; what else is in it is passed over."""
    for item in _flat(items):
        path, size = item.get("path"), item.get("size")
        if isinstance(path, str) and item.get("type", "file") == "file":
            yield path, size if type(size) is int and size >= 0 else None


def _attributes(part: dict[str, Any]) -> dict[str, str]:
    return {
        item["name"]: item["value"]
        for item in _flat(part.get("attributes"))
        if isinstance(item.get("name"), str) and isinstance(item.get("value"), str)
    }


def _value(part: dict[str, Any], name: str) -> str | None:
    return _attributes(part).get(name)
