"""A plate of an ImageXpress (Molecular Devices), as MetaXpress exports it or as its database keeps it.

    9987_Plate_3434/
      9987.HTD                                          names of the waves; also in the folders below, or nowhere
      TimePoint_1/ZStep_1/9987_B02_s1_w1.TIF            each of the two folders only where there are several
      TimePoint_1/ZStep_0/9987_B02_s1_w1.TIF            maximum over the steps: left out
    1334/
      Mix_E07_s1_w2B14915F6-0679-4494-82D1-F80894B32A66.tif     wave 2, then a GUID; beside ZStep_1/ a maximum, too
      Mix_E07_s1_w2_thumb57D4B151-71BF-480E-8CC4-C23A2690B763.tif             left out

Names lack the site where there is one site, and the wave where there is one wave.
"""

import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from bie_stream.errors import SourceError
from bie_stream.shards import Channel
from shardgen.archive import Layout, Plane, split_well
from shardgen.files import Files
from shardgen.sources.markup import Found, channel_names, gather

_GUID = r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}"
# A GUID has 36 characters, so that what is before it is certain also where it begins with digits.
_IMAGE = re.compile(
    rf"(?P<experiment>.+)_(?P<well>[A-Z]{{1,2}}[0-9]{{2}})(?:_s(?P<site>[0-9]{{1,6}}))?(?:_w(?P<wave>[0-9]{{1,6}}))?"
    rf"(?P<guid>{_GUID})?\.(?i:tiff?)"
)
_TIME, _STEP = r"TimePoint_([1-9][0-9]{0,5})", r"ZStep_([0-9]{1,6})"
_WAVE_NAME = re.compile(r'^\s*"WaveName([0-9]{1,6})"\s*,\s*"([^"]*)"', re.MULTILINE)


class _Image(NamedTuple):
    folder: str
    name: str
    match: re.Match[str]


def there(names: list[str]) -> bool:
    """Whether a folder with these entries is such a plate; names as `A_B02_s1_w1.tif` alone do not make one."""
    return any(_tells(name) for name in names)


def find(files: Files, folder: str, plate: str) -> Layout:
    """The fields of the plate in a folder, which may also be the folder of one time point.

    A site is a field. The maximum over the steps, in `ZStep_0` or beside `ZStep_1`, is left out where there are steps;
    a wave of which only that was kept is no channel.

    Raises:
        SourceError: the folder holds no such image, or two for one place.
        SourceMissing: there is no such folder.
    """
    folders = list(_folders(files, folder, (_TIME, _STEP)))
    images = [_Image(at, name, m) for at, names in folders for name in names if (m := _IMAGE.fullmatch(name))]
    if not images:
        raise SourceError(
            f"{files.root}/{folder} holds no image of MetaXpress; expected names as plate_B02_s1_w1.TIF, "
            "there or in TimePoint_1 or ZStep_1"
        )
    stacked = any(_number(_STEP, image.folder) for image in images)
    waves, fields = gather(plate, (_found(image) for image in images if _number(_STEP, image.folder) or not stacked))
    tables = [posixpath.join(at, name) for at, names in folders for name in names if _is_table(name)]
    names = channel_names(waves, _wave_names(files, tables, images[0].match["experiment"]))
    return Layout(channels=tuple(Channel(name=name) for name in names), fields=fields)


def _tells(name: str) -> bool:
    image = _IMAGE.fullmatch(name)
    return bool(_is_table(name) or (image and image["guid"]) or re.fullmatch(rf"(?:{_TIME}|{_STEP})/", name))


def _is_table(name: str) -> bool:
    return name.lower().endswith(".htd")


def _folders(files: Files, folder: str, kinds: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """The folder and those of time points and steps in it, each with its entries."""
    names = files.list(folder)
    yield folder, names
    for i, kind in enumerate(kinds):
        for name in names:
            if re.fullmatch(f"{kind}/", name):
                yield from _folders(files, posixpath.join(folder, name[:-1]), kinds[i + 1 :])


def _number(kind: str, folder: str) -> int:
    """Of the time point or step that a folder is of; 0: of none."""
    matches = [match for part in folder.split("/") if (match := re.fullmatch(kind, part))]
    return int(matches[-1][1]) if matches else 0


def _found(image: _Image) -> Found:
    row, column = split_well(image.match["well"])
    return Found(
        well=f"{row}{column}",
        field=str(int(image.match["site"] or 1)),
        z=max(0, _number(_STEP, image.folder) - 1),
        t=max(0, _number(_TIME, image.folder) - 1),
        channel=int(image.match["wave"] or 1),
        plane=Plane(posixpath.join(image.folder, image.name)),
    )


def _wave_names(files: Files, tables: list[str], experiment: str) -> dict[int, str]:
    """By the wave's number, from the table that has the images' name, else from the first; there may be none."""
    if not tables:
        return {}
    table = next((t for t in tables if posixpath.basename(t)[:-4] == experiment), tables[0])
    text = files.read(table).decode("latin-1")  # it breaks the lines of a description with the byte 0x81
    return {int(number): name for number, name in _WAVE_NAME.findall(text)}
