"""A folder of TIFFs, one plane each, whose names follow a pattern.

    Channel{channel}-{*}-{row}-{column}.tif
    {plate}/{well}_s{field}_w{channel}.tif

A placeholder in braces stands for a part of the name; `{*}` is any text. A pattern without `/` is matched against
the file's name, at any depth; one with `/` against the path inside the folder.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from bie_stream.errors import SourceError, nearest
from bie_stream.shards import Channel
from shardgen.archive import Archive, Field, Plane, natural, some, split_well
from shardgen.files import open_files
from shardgen.labels import read_labels

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


def find(
    root: Path,
    pattern: str,
    *,
    labels: Path | None = None,
    channels: dict[str, str] | None = None,
    plate: str | None = None,
) -> Archive:
    """The fields of a folder.

    Args:
        root: the folder.
        pattern: see above.
        labels: CSV of well labels, see `shardgen.labels`.
        channels: for each `{channel}` text in the names the channel's name, in the order wanted; planes of other
            channels are left alone. None: all, named by that text.
        plate: the plate's name where the pattern has none; None: the folder's name.

    Raises:
        SourceError: nothing matches, or two files claim to be the same plane.
    """
    if not root.is_dir():
        raise SourceError(f"{root} is not a folder, and not a study that this version knows")
    expression = compile_pattern(pattern)
    planes: dict[tuple[str, str, str, int, int], dict[str, str]] = {}
    total, last = 0, ""
    for file in _tiffs(root):
        total, last = total + 1, file
        match = expression.fullmatch(file if "/" in pattern else file.rsplit("/", 1)[-1])
        if not match:
            continue
        parts = match.groupdict()
        row, column = split_well(parts.get("well") or f"{parts['row']}{parts['column']}")
        place = (
            parts.get("plate") or plate or root.resolve().name,
            f"{row}{column}",
            parts.get("field") or "1",
            int(parts.get("z") or 0),
            int(parts.get("t") or 0),
        )
        channel = parts.get("channel") or "1"
        other = planes.setdefault(place, {}).setdefault(channel, file)
        if other != file:
            raise SourceError(
                f"{other} and {file} are both {_name(place)} channel {channel}; make the pattern tell them apart"
            )
    if not total:
        raise SourceError(f"{root} holds no TIFF file ({', '.join(_SUFFIXES)})")
    if not planes:
        raise SourceError(f"pattern {pattern!r} matches none of {total} TIFF files in {root}; one of them is {last!r}")

    seen = sorted({channel for files in planes.values() for channel in files}, key=natural)
    wanted = channels or {channel: channel for channel in seen}
    for channel in wanted:
        if channel not in seen:
            raise SourceError(f"no file has channel {channel!r}; {nearest(channel, seen)}")
    if len(set(wanted.values())) != len(wanted):
        raise SourceError(f"two channels have one name: {some(list(wanted.values()))}")
    fields = (
        Field(*place, planes=tuple((Plane(files[channel]),) if channel in files else () for channel in wanted))
        for place, files in planes.items()
        if any(channel in files for channel in wanted)
    )
    ordered = tuple(sorted(fields, key=lambda field: field.order))
    return Archive(
        files=open_files(root),
        study=root.resolve().name,
        source=str(root),
        channels=tuple(Channel(name=name) for name in wanted.values()),
        fields=ordered,
        labels=read_labels(labels, ((field.plate, field.well) for field in ordered)) if labels else {},
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


def _tiffs(root: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(_SUFFIXES):
                yield Path(folder, file).relative_to(root).as_posix()


def _name(place: tuple[str, str, str, int, int]) -> str:
    plate, well, field, z, t = place
    return f"plate {plate} well {well} field {field} z {z} t {t}"
