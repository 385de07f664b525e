"""A folder of TIFFs, one plane each, whose names follow a pattern.

    Channel{channel}-{*}-{row}-{column}.tif
    {plate}/{well}_s{field}_w{channel}.tif

A placeholder in braces stands for a part of the name; `{*}` is any text. A pattern without `/` is matched against
the file's name, at any depth; one with `/` against the path inside the folder.
"""

import re
import reprlib
from collections.abc import Mapping

from bie_stream.errors import SourceError, nearest
from bie_stream.shards import Channel
from shardgen.archive import Field, Layout, Place, Plane, describe_place, natural, split_well
from shardgen.files import Files, walk
from shardgen.sources.markup import whole

_PARTS = {
    "plate": r"[^/]+?",
    "well": r"[A-Za-z]{1,2}[0-9]{1,3}",
    "row": r"[A-Za-z]{1,2}",
    "column": r"[0-9]{1,3}",
    "field": r"[0-9A-Za-z]+?",
    "channel": r"[^/]+?",
    "z": r"[0-9]+",
    "t": r"[0-9]+",
    "*": r"[^/]*?",
}
_SUFFIXES = (".tif", ".tiff")


def find(files: Files, pattern: str, *, listed: Mapping[str, int | None] | None = None, plate: str = "") -> Layout:
    """The fields among files; channels are named by their text in the names.

    Args:
        pattern: see above.
        listed: paths to choose from with their sizes in bytes, where an archive lists them; None: all below the root.
        plate: the plate's name where the pattern has none.

    Raises:
        SourceError: nothing matches, or two files claim to be the same plane.
    """
    expression = compile_pattern(pattern)
    planes: dict[Place, dict[str, str]] = {}
    total, last = 0, ""
    for file in listed if listed is not None else walk(files):
        if not file.lower().endswith(_SUFFIXES):
            continue
        total, last = total + 1, file
        if any(len(part) > 255 for part in file.split("/")):  # a list can name it, but matching might take for ever
            raise SourceError(f"{reprlib.repr(file)} has a name of more than 255 characters; no file has")
        match = expression.fullmatch(file if "/" in pattern else file.rsplit("/", 1)[-1])
        if not match:
            continue
        parts = match.groupdict()
        row, column = split_well(parts.get("well") or f"{parts['row']}{parts['column']}")
        place = (
            parts.get("plate") or plate,
            f"{row}{column}",
            parts.get("field") or "1",
            _slice(parts.get("z"), "z", file),
            _slice(parts.get("t"), "t", file),
        )
        channel = parts.get("channel") or "1"
        other = planes.setdefault(place, {}).setdefault(channel, file)
        if other != file:
            raise SourceError(
                f"{other} and {file} are both {describe_place(place)} channel {channel}; "
                "make the pattern tell them apart"
            )
    if not total:
        raise SourceError(f"{files.root} holds no TIFF file ({', '.join(_SUFFIXES)})")
    if not planes:
        raise SourceError(
            f"pattern {pattern!r} matches none of {total} TIFF files in {files.root}; one of them is {last!r}"
        )

    seen = sorted({channel for found in planes.values() for channel in found}, key=natural)
    fields = (
        Field(*place, planes=tuple(_planes(found.get(channel), listed or {}) for channel in seen))
        for place, found in planes.items()
    )
    return Layout(
        channels=tuple(Channel(name=name) for name in seen),
        fields=tuple(sorted(fields, key=lambda field: field.order)),
    )


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The regular expression that a pattern stands for.

    Raises:
        SourceError: an unknown placeholder, one used twice, or no way to tell the well.
    """
    expression, used = "", set()
    for text, name in re.findall(r"([^{}]*)(?:\{([^{}]*)\})?", pattern):
        expression += re.escape(text)
        if not name:
            continue
        if name not in _PARTS:
            raise SourceError(f"pattern {pattern!r}: {{{name}}} is not a placeholder; {nearest(name, list(_PARTS))}")
        if name != "*" and name in used:
            raise SourceError(f"pattern {pattern!r}: {{{name}}} is there twice")
        used.add(name)
        expression += _PARTS[name] if name == "*" else f"(?P<{name}>{_PARTS[name]})"
    if not ("well" in used or {"row", "column"} <= used):
        raise SourceError(f"pattern {pattern!r} does not tell the well: it needs {{well}}, or {{row}} and {{column}}")
    return re.compile(expression)


def _slice(digits: str | None, what: str, file: str) -> int:
    return whole((digits or "").lstrip("0") or "0", what, file, 0, 10**9)


def _planes(file: str | None, sizes: Mapping[str, int | None]) -> tuple[Plane, ...]:
    return () if file is None else (Plane(file, file_bytes=sizes.get(file)),)
