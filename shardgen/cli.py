"""The command `shardgen`: a thin parser over plain functions. Progress and errors on stderr, results on stdout."""

import contextlib
import json
import logging
import posixpath
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

import bie_stream
from bie_stream.errors import SourceError, one_line_errors, printable
from bie_stream.shards import Manifest
from shardgen.arguments import Arguments, takes_arguments
from shardgen.build import begun_with, some_samples
from shardgen.build import build as run_build
from shardgen.codec_choice import MAX_SAMPLES, choose
from shardgen.engines import Engine
from shardgen.find import find
from shardgen.pixels import probe
from shardgen.plan import Plan, describe, make_plan, readable_bytes
from shardgen.preview import contact_sheet
from shardgen.studies import STUDIES
from shardgen.transfer_size import to_fetch
from shardgen.verify import verify as run_verify

_MISUSE: Any = typer.BadParameter.__base__  # of click, or of the copy of it that newer typers bring
_STOPPED = 130  # as shells say it of what Ctrl-C ended

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Folder = Annotated[str, typer.Argument(help="Folder or URL of a dataset, as given to `build --out`.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(bie_stream.__version__)
        raise typer.Exit


@app.callback()
def _shardgen(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Archives in, shards out."""


@app.command("list")
def list_() -> None:
    """The studies that can be built by name."""
    for name, study in STUDIES.items():
        typer.echo(f"{name:10} {study.title}")
        typer.echo(f"{'':10} {study.size}; {study.licence}")
        typer.echo(f"{'':10} channels {', '.join(study.channels)}; labels {', '.join(study.labels)}, …")


@app.command()
@takes_arguments
def plan(arguments: Arguments) -> None:
    """What `build` would do, without reading pixels."""
    with one_line_errors():
        planned = _plan(arguments)
        for name, value in describe(planned, to_fetch(planned)).items():
            said = f"{value:,}" if isinstance(value, int) else printable(str(value))
            typer.echo(f"{name:28} {said}")


@app.command()
@takes_arguments
def build(
    arguments: Arguments,
    out: Annotated[str, typer.Option(help="Folder for the dataset, or a URL: s3://bucket/plates.", show_default=False)],
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Fields that may be left out as unreadable.")] = 0,
    retry_rejects: Annotated[bool, typer.Option("--retry-rejects", help="Try again those that were left out.")] = False,
    report: Annotated[Path | None, typer.Option(help="JSON to write: how much, how fast.")] = None,
    engine: Annotated[Engine, typer.Option(help="What writes shards: this machine, or a Ray cluster.")] = "processes",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster, HOST:PORT. Default: as ray.init().")] = None,
) -> None:
    """Turn an archive into a dataset of shards. Killed at any moment, it goes on when run again.

    shardgen build demo --out shards/demo

    shardgen build idr0036 --plates 20585 --channels Hoechst --out shards/hoechst

    shardgen build raw/plate --pattern '{well}_w{channel}.tif' --labels wells.csv --out shards/plate
    """
    with one_line_errors(), _said_when_stopped("stopped; the same command again goes on"):
        if not out.strip():
            raise SourceError("--out is empty; expected a folder or a URL, as in shards/plate or s3://bucket/plate")
        planned = _plan(arguments, out)
        if re.search(r"\bNC\b|non-?commercial", planned.archive.licence or "", re.IGNORECASE):
            said = f"note: {planned.archive.study} is {planned.archive.licence}: no commercial use"
            typer.echo(printable(said), err=True)
        manifest = run_build(
            planned, out, workers=workers, max_rejects=max_rejects, retry_rejects=retry_rejects, report=report,
            engine=engine, address=address,
        )  # fmt: skip
        left_out = "".join(f", {count:,} left out ({why})" for why, count in manifest.left_out.items())
        typer.echo(
            f"{out}: {_counted(manifest.samples, 'sample')} in {_counted(len(manifest.shards), 'shard')}, "
            f"{readable_bytes(_bytes(manifest))}{left_out}, {_counted(manifest.rejected, 'field')} rejected; "
            f"next: shardgen verify {shlex.quote(out)}"
        )


@app.command()
def verify(dataset: Folder) -> None:
    """Read every byte of a dataset and hold it against its manifest."""
    with one_line_errors():
        faults = 0
        for fault in run_verify(dataset):
            faults += 1
            tqdm.write(f"fault: {printable(fault)}", file=sys.stderr)  # above the bar, not behind it
        if faults:
            raise bie_stream.DatasetError(
                f"{dataset} has {_counted(faults, 'fault')}; remove the shards that are named, and the same "
                "`shardgen build` writes them again"
            )
        typer.echo(f"{dataset}: sound")


@app.command()
def info(dataset: Folder, as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False) -> None:
    """What a dataset holds."""
    with one_line_errors():
        manifest = bie_stream.open(dataset).manifest
        if as_json:
            typer.echo(json.dumps(json.loads(manifest.model_dump_json()), indent=2))  # which writes out all but ASCII
            return
        lines: dict[str, Any] = {
            "study": manifest.study,
            "licence": manifest.licence or "not stated",
            "citation": manifest.citation or "not stated",
            "source": manifest.source,
            "samples": f"{manifest.samples:,} ({', '.join(f'{k} {v:,}' for k, v in manifest.splits.items())})",
            "pixels": manifest.dtype,
            "pixel size": f"{manifest.pixel_size_um} µm" if manifest.pixel_size_um else "not stated",
            "shards": f"{len(manifest.shards):,}, {readable_bytes(_bytes(manifest))}, {manifest.codec}",
            "labels": ", ".join(manifest.labels) or "none",
            "rejected fields": manifest.rejected,
            "left out": ", ".join(f"{count:,} {why}" for why, count in manifest.left_out.items()) or "nothing",
        }
        for name, value in lines.items():
            typer.echo(f"{name:16} {printable(str(value))}")
        for channel, s in zip(manifest.channels, manifest.statistics, strict=True):
            typer.echo(
                f"{'channel':16} {printable(channel.name)}: mean {s.mean:.5g}, std {s.std:.5g}, "
                f"{s.minimum:g}..{s.maximum:g}"
            )


@app.command()
def preview(
    dataset: Folder, out: Annotated[Path, typer.Option(help="PNG to write.", show_default=False)],
    rows: Annotated[int, typer.Option(min=1, help="How many samples.")] = 6,
) -> None:  # fmt: skip
    """A contact sheet of some samples."""
    with one_line_errors():
        if out.suffix.lower() != ".png":
            raise bie_stream.DatasetError(f"--out {out} will be a PNG; give it a name that ends in .png")
        contact_sheet(bie_stream.open(dataset), out, rows)
        typer.echo(out)


def _plan(arguments: Arguments, out: str | None = None) -> Plan:
    raw = None if out is None else Path(f"{posixpath.basename(out) if '://' in out else out.rstrip('/')}-raw")
    archive = find(arguments.source, arguments.request(raw))
    pixels = probe(archive)
    if arguments.codec != "auto":
        return make_plan(archive, arguments.options(), *pixels)
    if out is None:
        raise SourceError("--codec auto reads pixels, and a plan does not; give the codec's name, or build")
    plan = make_plan(archive, arguments.options("npy"), *pixels)
    codec = begun_with(out)
    if codec is None:
        choice = choose(some_samples(plan, MAX_SAMPLES))
        for row in choice.table:
            typer.echo(
                f"{row.codec:8} {row.ratio:5.2f} times smaller, {row.encode_mb_s:5.0f} MB/s in, "
                f"{row.decode_mb_s:5.0f} MB/s out", err=True,
            )  # fmt: skip
        typer.echo(f"codec {choice.why}", err=True)
        codec = choice.codec
    return make_plan(archive, arguments.options(codec), *pixels)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _bytes(manifest: Manifest) -> int:
    return sum(shard.bytes for shard in manifest.shards)


@contextlib.contextmanager
def _said_when_stopped(text: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(text, err=True)
        raise


def main() -> None:
    """Entry point: a wrong word is one line on stderr, too, and ends with 2."""
    logging.basicConfig(format="note: %(message)s")
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:  # how older typers say Ctrl-C
        sys.exit(_STOPPED)
    except _MISUSE as error:
        command = error.ctx.command_path if error.ctx else "shardgen"
        said = " ".join(error.format_message().split()).rstrip(".").replace("Value error, ", "")
        if len(sys.argv) == 1:
            error.show()
        else:
            typer.echo(f"error: {said} (see {command} --help)", err=True)
        sys.exit(2)
