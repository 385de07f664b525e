"""A plate as IDR writes it down where no reader knows the layout: a `.screen` file of patterns, in INI form.

    [Plate]                       Name, Rows, Columns, Fields
    [Well 0]
    Row = 0                       from 0, as Column
    AxisTypes = C                 what each pair of <> runs over: C, Z or T
    ChannelNames = ERSyto,Hoechst
    Field_0 = /uod/idr/filesets/…/20585-<ERSyto/A01_s1_w2,Hoechst/A01_s1_w1>.tif

A field that is not there was not imaged. `Field_0` is field 1, as in OMERO and in the names of the files.
"""

import configparser
import itertools
import math
import re
from collections.abc import Iterator, Mapping

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane
from shardgen.sources.markup import Found, gather, path_below, well_at, whole

_LARGEST_FIELD = 100_000  # planes; a pattern of three axes could make a million times as many from a small file
MOST_PLANES = 1_000_000  # of one plate; real ones of IDR have tens of thousands


def parse(text: str, plate: str, where: str, prefix: str) -> Layout:
    """The fields of one plate. No file is looked at, or for.

    Args:
        text: of the `.screen` file.
        plate: its name in the study; that in the file is not used.
        where: the file, for messages.
        prefix: what the server's paths begin with, and is taken off.

    Raises:
        SourceError: the file is not of this form, or names files that are not below `prefix`.
    """
    sections = _sections(text, where)
    if "Plate" not in sections:
        raise SourceError(f"{where} has no section [Plate]; expected a .screen file of IDR")
    size = sections["Plate"]
    limits = {key: whole(size.get(key), f"{key} of [Plate]", where) for key in ("Rows", "Columns", "Fields")}
    numbers: dict[str, int] = {}  # of each channel's name, as they come
    found = (
        one
        for name, section in sections.items()
        if re.fullmatch(r"Well [0-9]+", name)
        for one in _well(section, limits, numbers, f"{where} [{name}]", prefix)
    )
    taken = list(itertools.islice(found, MOST_PLANES + 1))
    if len(taken) > MOST_PLANES:
        raise SourceError(f"{where} stands for more than {MOST_PLANES:,} planes; no plate has so many")
    channels, fields = gather(plate, taken)
    if not fields:
        raise SourceError(f"{where} names no field; expected Field_0 = /path in sections [Well 0], [Well 1] …")
    names = list(numbers)
    return Layout(channels=tuple(Channel(name=names[number]) for number in channels), fields=fields)


class _Ini(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr  # the case counts


def _sections(text: str, where: str) -> dict[str, dict[str, str]]:
    parser = _Ini(delimiters=("=",))
    try:
        parser.read_string(text, where)
    except configparser.Error as error:
        raise SourceError(f"{where} is not an INI file: {' '.join(str(error).split())}") from error
    return {name: dict(parser.items(name)) for name in parser.sections()}


def _well(
    section: Mapping[str, str], limits: Mapping[str, int], numbers: dict[str, int], where: str, prefix: str
) -> Iterator[Found]:
    for key in ("Row", "Column"):
        whole(section.get(key), key, where, 0, limits[f"{key}s"] - 1)
    well = well_at(section["Row"], section["Column"], where, first=0)
    names = [name.strip() for name in section.get("ChannelNames", "1").split(",")]
    if len(set(names)) != len(names) or "" in names:
        raise SourceError(
            f"{where}: ChannelNames is {section['ChannelNames']!r}; expected a name for each, all different"
        )
    for key, pattern in section.items():
        if not (match := re.fullmatch(r"Field_(.*)", key)):
            continue
        field = whole(match[1], "the number of a field", where, 0, limits["Fields"] - 1) + 1
        for place, path in _expand(pattern, section.get("AxisTypes", ""), len(names), f"{where} {key}"):
            channel = numbers.setdefault(names[place.get("C", 0)], len(numbers))
            plane = Plane(_below(path, prefix, f"{where} {key}"))
            yield Found(well, str(field), place.get("Z", 0), place.get("T", 0), channel, plane)


def _expand(pattern: str, axes: str, channels: int, where: str) -> Iterator[tuple[dict[str, int], str]]:
    """Each path that a pattern stands for, with its position along each axis."""
    parts = re.split(r"<([^<>]*)>", pattern)
    texts, choices = parts[::2], [block.split(",") for block in parts[1::2]]
    lengths = dict(zip(axes, map(len, choices), strict=False))
    if len(choices) != len(axes) or len(lengths) != len(axes) or not set(axes) <= set("CZT"):
        raise SourceError(
            f"{where} has {len(choices)} pairs of <>, AxisTypes is {axes!r}; expected one of CZT for each, none twice"
        )
    if lengths.get("C", 1) != channels:
        raise SourceError(f"{where} names {lengths.get('C', 1)} channels, ChannelNames has {channels}")
    if any("<" in text or ">" in text for text in texts):
        raise SourceError(f"{where} has a < or > without its other half")
    if any(re.fullmatch(r"[0-9]+-[0-9]+(:[0-9]+)?", choice) for block in choices for choice in block):
        raise SourceError(f"{where} has a range, as in <1-5>; expected all alternatives, as in <1,2,3,4,5>")
    if math.prod(lengths.values()) > _LARGEST_FIELD:
        raise SourceError(f"{where} stands for {math.prod(lengths.values())} planes; no field has so many")
    for picks in itertools.product(*(range(len(block)) for block in choices)):
        chosen = [block[pick] for block, pick in zip(choices, picks, strict=True)]
        path = "".join(itertools.chain.from_iterable(zip(texts, [*chosen, ""], strict=True)))
        yield dict(zip(axes, picks, strict=True)), path


def _below(path: str, prefix: str, where: str) -> str:
    if not path.startswith(prefix):
        raise SourceError(f"{where} names {path!r}; expected a path below {prefix}")
    return path_below(path.removeprefix(prefix), where)
