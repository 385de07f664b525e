"""What `plan` and `build` take from the command line, and how it becomes a request and the options of a plan."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from bie_stream.codecs import CODECS, Codec
from bie_stream.errors import SourceError, nearest
from shardgen.endpoints import resolve
from shardgen.files import Transfer
from shardgen.plan import Options
from shardgen.request import Request
from shardgen.select import Selection, parse_where

_WHAT = "Which fields"
_SAMPLES = "How samples are made"
_ABOUT = "What the archive does not say of itself"
_SERVER = "Servers"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False, **more)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """A source, what is wanted of it, and what samples should look like."""

    source: Annotated[
        str,
        typer.Argument(
            help="A study (`shardgen list`), an accession (S-BIAD…), a folder, or a URL.", show_default=False
        ),
    ]
    pattern: Annotated[str, _option("File names, as in '{plate}/{well}_s{field}_w{channel}.tif'.", _ABOUT)] = ""
    labels: Annotated[
        Path | None, _option("CSV of well labels: `well`, `plate` where needed, label columns.", _ABOUT)
    ] = None
    plate: Annotated[str | None, _option("The plate's name where files do not say it.", _ABOUT)] = None
    study: Annotated[str | None, _option("Name of the study. Default: the folder's name.", _ABOUT)] = None
    licence: Annotated[str | None, _option("Licence of the images, recorded in the manifest.", _ABOUT)] = None
    citation: Annotated[str | None, _option("How to cite the images, recorded in the manifest.", _ABOUT)] = None
    pixel_size_um: Annotated[float | None, _option("Side of a pixel in µm.", _ABOUT, "--pixel-size-um", min=1e-6)] = (
        None
    )

    plates: Annotated[str, _option("As in '001,002'.", _WHAT)] = ""
    wells: Annotated[str, _option("As in 'A1,B12', or '001/A1' for one plate's.", _WHAT)] = ""
    fields: Annotated[str, _option("As in '1,2'.", _WHAT)] = ""
    channels: Annotated[str, _option("In order, as in 'DNA,Actin'; '1=DNA,2=Actin' also renames.", _WHAT)] = ""
    where: Annotated[list[str], _option("'COLUMN=VALUE' or 'COLUMN=VALUE|VALUE' of the labels.", _WHAT)] = (
        dataclasses.field(default_factory=list)
    )
    z: Annotated[str, _option("each, max, middle, or an index from 0. Default: each.", _WHAT)] = "each"
    t: Annotated[str, _option("The same for time.", _WHAT)] = "each"
    limit: Annotated[int | None, _option("The first so many fields of these.", _WHAT, min=1)] = None

    bin: Annotated[
        int, _option("Average squares of this many pixels on a side. Default: 1, no loss.", _SAMPLES, min=1, max=64)
    ] = 1
    tile: Annotated[
        int | None, _option("Cut squares of this many pixels: side by side, or around objects.", _SAMPLES, min=1)
    ] = None
    objects: Annotated[
        Path | None,
        _option("Cut around objects: a CSV or Parquet of `well`, `field`, `y`, `x` in pixels, and labels.", _SAMPLES),
    ] = None
    masks: Annotated[
        str | None,
        _option("Cut around the objects of label images: 'masks/{well}_s{field}.tif'; of OME-Zarr, a name.", _SAMPLES),
    ] = None
    min_signal: Annotated[
        str, _option("As in 'DNA=300': leave out samples of which less than 1 % of pixels reach this.", _SAMPLES)
    ] = ""
    split: Annotated[str, _option("Shares. Default: train=0.8,val=0.1,test=0.1.", _SAMPLES)] = (
        "train=0.8,val=0.1,test=0.1"
    )
    split_by: Annotated[
        str, _option("What may not stand on two sides: well (default), plate, or a label column.", _SAMPLES)
    ] = "well"
    stratify_by: Annotated[str | None, _option("A label column that all splits should have alike.", _SAMPLES)] = None
    folds: Annotated[int | None, _option("Deal into this many folds too: column `fold`.", _SAMPLES, min=2)] = None
    split_seed: Annotated[int, _option("Another number deals the groups differently.", _SAMPLES)] = 0
    codec: Annotated[
        str, _option("npy (as it is, default), tif, jph, blosc2, or auto: measured on the pixels. Lossless.", _SAMPLES)
    ] = "npy"
    shard_mb: Annotated[int, _option("About how large a shard is, in MiB. Default: 256.", _SAMPLES, min=1)] = 256

    endpoint: Annotated[
        list[str], _option("NAME=URL of idr_metadata, idr_files, omero, biostudies or s3.", _SERVER)
    ] = dataclasses.field(default_factory=list)
    connections: Annotated[int, _option("At once to one host, from one process. Default: 8.", _SERVER, min=1)] = 8
    timeout_s: Annotated[
        float,
        _option(
            "Without a byte, after which a connection is tried anew. Default: 30.", _SERVER, "--timeout-s", min=0.1
        ),
    ] = 30.0

    def request(self, raw: Path | None = None) -> Request:
        """What is asked of the archive.

        Raises:
            SourceError: a value that cannot be used.
        """
        try:
            selection = Selection(
                plates=_words(self.plates), wells=_words(self.wells), fields=_words(self.fields),
                channels=_pairs(self.channels, "--channels", alone=True) or None, where=parse_where(self.where),
                z=self.z, t=self.t, limit=self.limit,
            )  # fmt: skip
        except ValidationError as error:
            raise SourceError("; ".join(f"--{fault['loc'][0]}: {_said(fault)}" for fault in error.errors())) from error
        return Request(
            pattern=self.pattern, labels=self.labels, plate=self.plate, study=self.study, licence=self.licence,
            citation=self.citation, pixel_size_um=self.pixel_size_um, objects=self.objects, masks=self.masks,
            selection=selection, endpoints=resolve(self.endpoint), raw=raw,
            transfer=Transfer(connections=self.connections, timeout_s=self.timeout_s),
        )  # fmt: skip

    def options(self, codec: Codec | None = None) -> Options:
        """How samples are made; raises as `request`.

        Args:
            codec: what `auto` was found to be.
        """
        chosen = codec or self.codec
        if chosen not in CODECS:
            raise SourceError(f"--codec {chosen!r}: {nearest(chosen, [*CODECS, 'auto'])}")
        try:
            return Options(
                bin=self.bin, tile=self.tile, objects=None if self.objects is None else self.objects.name,
                masks=None if self.masks is None else re.sub(r"^[^{]*/", "", self.masks),
                min_signal=_numbers(self.min_signal, "--min-signal"),
                splits=_numbers(self.split, "--split"), split_by=self.split_by,
                stratify_by=self.stratify_by, folds=self.folds, split_seed=self.split_seed,
                shard_bytes=self.shard_mb * 2**20, codec=chosen,
            )  # fmt: skip
        except ValidationError as error:
            raise SourceError(f"--split {self.split}: {'; '.join(map(_said, error.errors()))}") from error


def takes_arguments(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command all of `Arguments` as its own parameters; it gets them as one object, its first."""
    hints = get_type_hints(Arguments, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, annotation=hints[field.name], default=_default(field)
        )
        for field in dataclasses.fields(Arguments)
    ]
    own = list(inspect.signature(command).parameters.values())[1:]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        mine = {parameter.name: values.pop(parameter.name) for parameter in shared}
        command(Arguments(**mine), **values)

    parameters = [
        *shared[:1], *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own), *shared[1:],
    ]  # fmt: skip
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _words(text: str) -> tuple[str, ...] | None:
    return tuple(word.strip() for word in text.split(",") if word.strip()) or None


def _said(fault: Any) -> str:
    """What pydantic has against a value, without its own words."""
    return str(fault["msg"]).removeprefix("Value error, ")


def _numbers(text: str, option: str) -> dict[str, float]:
    found = {}
    for name, number in _pairs(text, option, like="a=0.5,b=0.5" if option == "--split" else "DNA=300").items():
        try:
            found[name] = float(number)
        except ValueError as error:
            raise SourceError(f"{option} {text!r}: {number!r} of {name!r} is not a number") from error
    return found


def _pairs(text: str, option: str, alone: bool = False, like: str = "a=x,b=y") -> dict[str, str]:
    """`a=x,b=y`; where a word may stand alone it stands for itself."""
    found = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if not name:
            continue
        if not value and not alone:
            raise SourceError(f"{option} {text!r} should look like '{like}'")
        found[name] = value or name
    return found
