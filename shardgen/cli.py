"""The command `shardgen`: a thin parser over plain functions. Progress and errors on stderr, results on stdout."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

import bie_stream
from bie_stream.errors import SourceError, one_line_errors
from shardgen.archive import Archive
from shardgen.build import build as run_build
from shardgen.pixels import probe
from shardgen.plan import Options, Plan, describe, make_plan
from shardgen.preview import contact_sheet
from shardgen.sources import tiff_folder
from shardgen.studies import STUDIES
from shardgen.verify import verify as run_verify

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Source = Annotated[str, typer.Argument(help="A study (`shardgen list`), or a folder of TIFFs.")]
Folder = Annotated[Path, typer.Argument(help="Folder of a dataset, as given to `build --out`.")]
Out = Annotated[Path, typer.Option(help="Folder for the dataset.", show_default=False)]
Pattern = Annotated[
    str, typer.Option(help="File names, as in '{plate}/{well}_s{field}_w{channel}.tif'; {*} is any text.")
]
Labels = Annotated[Path | None, typer.Option(help="CSV of well labels: `well`, `plate` where needed, labels.")]
Channels = Annotated[str, typer.Option(help="Names for {channel}, in order: '1=DNA,2=Actin'. Default: all as found.")]
Plate = Annotated[str | None, typer.Option(help="The plate's name where the pattern has no {plate}.")]
Tile = Annotated[int | None, typer.Option(help="Cut fields into squares of this many pixels.")]
Split = Annotated[str, typer.Option(help="Shares of the groups for each split.")]
SplitBy = Annotated[str, typer.Option(help="What may not stand on two sides: well, plate, or a label column.")]
SplitSeed = Annotated[int, typer.Option(help="Another number deals the groups differently.")]
ShardMB = Annotated[int, typer.Option(help="About how large a shard is, in MiB.")]
Study = Annotated[str | None, typer.Option(help="Name of the study. Default: the folder's name.")]
Licence = Annotated[str | None, typer.Option(help="Licence of the images, recorded in the manifest.")]
Citation = Annotated[str | None, typer.Option(help="How to cite the images, recorded in the manifest.")]
PixelSize = Annotated[float | None, typer.Option("--pixel-size-um", help="Side of a pixel in µm.")]


@app.command("list")
def list_() -> None:
    """The studies that can be built by name."""
    for name, study in STUDIES.items():
        typer.echo(f"{name:12} {study.SUMMARY}")
    typer.echo(f"{'FOLDER':12} TIFFs, one plane a file; see `shardgen build --help`")


@app.command()
def plan(
    source: Source, pattern: Pattern = "", labels: Labels = None, channels: Channels = "", plate: Plate = None,
    tile: Tile = None, split: Split = "train=0.8,val=0.1,test=0.1", split_by: SplitBy = "well",
    split_seed: SplitSeed = 0, shard_mb: ShardMB = 256, study: Study = None, licence: Licence = None,
    citation: Citation = None, pixel_size_um: PixelSize = None,
) -> None:  # fmt: skip
    """What `build` would do, without doing it."""
    with one_line_errors():
        if source in STUDIES:
            raise SourceError(f"study {source!r} is written when it is built; plan its raw folder, or build it")
        archive = _folder(source, pattern, labels, channels, plate, study, licence, citation, pixel_size_um)
        for name, value in describe(_plan(archive, tile, split, split_by, split_seed, shard_mb)).items():
            typer.echo(f"{name:28} {value}")


@app.command()
def build(
    source: Source, out: Out, pattern: Pattern = "", labels: Labels = None, channels: Channels = "",
    plate: Plate = None, tile: Tile = None, split: Split = "train=0.8,val=0.1,test=0.1", split_by: SplitBy = "well",
    split_seed: SplitSeed = 0, shard_mb: ShardMB = 256, study: Study = None, licence: Licence = None,
    citation: Citation = None, pixel_size_um: PixelSize = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    max_rejects: Annotated[int, typer.Option(min=0, help="Fields that may be left out as unreadable.")] = 0,
) -> None:  # fmt: skip
    """Turn an archive into a dataset of shards. Killed at any moment, it goes on when run again.

    shardgen build demo --out shards/demo

    shardgen build raw/plate --pattern '{well}_w{channel}.tif' --labels wells.csv --out shards/plate
    """
    with one_line_errors():
        if source in STUDIES:
            if pattern or labels or channels or plate:
                raise SourceError(f"study {source!r} brings its own --pattern, --labels, --channels and --plate")
            archive = STUDIES[source].fetch(out.with_name(f"{out.name}-raw"))
        else:
            archive = _folder(source, pattern, labels, channels, plate, study, licence, citation, pixel_size_um)
        planned = _plan(archive, tile, split, split_by, split_seed, shard_mb)
        manifest = run_build(planned, out, workers=workers, max_rejects=max_rejects)
        size = sum(shard.bytes for shard in manifest.shards)
        typer.echo(
            f"{out}: {manifest.samples} samples in {len(manifest.shards)} shards, {size / 1e6:.1f} MB, "
            f"{manifest.rejected} fields rejected; next: shardgen verify {out}"
        )


@app.command()
def verify(dataset: Folder) -> None:
    """Read every byte of a dataset and hold it against its manifest."""
    with one_line_errors():
        faults = 0
        for fault in run_verify(dataset):
            faults += 1
            tqdm.write(f"fault: {fault}", file=sys.stderr)  # above the bar, not behind it
        if faults:
            raise bie_stream.DatasetError(f"{dataset} has {faults} faults")
        typer.echo(f"{dataset}: sound")


@app.command()
def info(dataset: Folder, as_json: Annotated[bool, typer.Option("--json", help="The whole manifest.")] = False) -> None:
    """What a dataset holds."""
    with one_line_errors():
        manifest = bie_stream.open(dataset).manifest
        if as_json:
            typer.echo(manifest.model_dump_json(indent=2))
            return
        lines: dict[str, Any] = {
            "study": manifest.study,
            "licence": manifest.licence or "not stated",
            "citation": manifest.citation or "not stated",
            "source": manifest.source,
            "samples": f"{manifest.samples} ({', '.join(f'{k} {v}' for k, v in manifest.splits.items())})",
            "pixels": manifest.dtype,
            "pixel size": f"{manifest.pixel_size_um} µm" if manifest.pixel_size_um else "not stated",
            "shards": f"{len(manifest.shards)}, {sum(s.bytes for s in manifest.shards) / 1e6:.1f} MB, {manifest.codec}",
            "labels": ", ".join(manifest.labels) or "none",
            "rejected fields": manifest.rejected,
        }
        for name, value in lines.items():
            typer.echo(f"{name:16} {value}")
        for channel, s in zip(manifest.channels, manifest.statistics, strict=True):
            typer.echo(
                f"{'channel':16} {channel.name}: mean {s.mean:.5g}, std {s.std:.5g}, {s.minimum:g}..{s.maximum:g}"
            )


@app.command()
def preview(
    dataset: Folder, out: Annotated[Path, typer.Option(help="PNG to write.", show_default=False)],
    rows: Annotated[int, typer.Option(min=1, help="How many samples.")] = 6,
) -> None:  # fmt: skip
    """A contact sheet of some samples."""
    with one_line_errors():
        contact_sheet(bie_stream.open(dataset), out, rows)
        typer.echo(out)


def _folder(
    source: str, pattern: str, labels: Path | None, channels: str, plate: str | None, study: str | None,
    licence: str | None, citation: str | None, pixel_size_um: float | None,
) -> Archive:  # fmt: skip
    from dataclasses import replace

    if not Path(source).is_dir():
        raise SourceError(
            f"{source!r} is neither a folder nor a study; {bie_stream.errors.nearest(source, list(STUDIES))}"
        )
    if not pattern:
        raise SourceError("a folder needs --pattern, as in '{plate}/{well}_s{field}_w{channel}.tif'")
    archive = tiff_folder.find(
        Path(source), pattern, labels=labels, channels=_pairs(channels, "--channels"), plate=plate
    )
    return replace(
        archive, study=study or archive.study, licence=licence, citation=citation, pixel_size_um=pixel_size_um
    )


def _plan(archive: Archive, tile: int | None, split: str, split_by: str, split_seed: int, shard_mb: int) -> Plan:
    try:
        shares = {name: float(share) for name, share in _pairs(split, "--split").items()}
        options = Options(
            tile=tile, splits=shares, split_by=split_by, split_seed=split_seed, shard_bytes=shard_mb * 2**20
        )
    except ValueError as error:
        raise SourceError(f"--split {split} --tile {tile} --shard-mb {shard_mb}: {error}") from error
    return make_plan(archive, options, *probe(archive))


def _pairs(text: str, option: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not value for _, _, value in pairs):
        raise SourceError(f"{option} {text!r} should look like 'a=x,b=y'")
    return {name.strip(): value.strip() for name, _, value in pairs}


def main() -> None:
    """Entry point."""
    app()
