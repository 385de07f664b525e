"""The command `python -m bench`: a thin parser over plain functions. Progress on stderr, tables on stdout."""

import contextlib
import json
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from bench import loader, start_up
from bench.conditions import conditions
from bench.environments import DEFAULT, install, python_of, versions_in
from bench.loader_report import markdown
from bench.peers import PEERS
from bench.processes import Interpreters
from bench.works import FIELDS, WORKS
from bie_stream.atomic import atomic_file
from bie_stream.errors import one_line_errors

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_PACKAGES = (
    "bie-stream", "torch", "numpy", "numba", "webdataset", "nvidia-dali-cuda130", "litdata", "mosaicml-streaming",
    "spdl", "grain", "array-record", "tifffile", "imagecodecs", "zarr", "blosc2",
)  # fmt: skip
_ROWS, _QUICK_ROWS = 10_000_000, 1_000_000

Peers = Annotated[Path, typer.Option(help="Folder of the environments of peers.")]


@app.command()
def peers(
    names: Annotated[list[str] | None, typer.Argument(help="Default: all.", show_default=False)] = None,
    peers: Peers = DEFAULT,
) -> None:
    """Sets up the peers that need an environment of their own."""
    failed = install(names or list(PEERS), peers)
    for name, why in failed.items():
        typer.echo(f"{name}: {why}", err=True)
    raise typer.Exit(bool(failed))


@app.command("loader")
def loader_(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples, rounds and seconds, one work.")] = False,
    works: Annotated[list[str] | None, typer.Option("--work", help=f"Of {', '.join(WORKS)}.")] = None,
    names: Annotated[list[str] | None, typer.Option("--peer", help=f"Of {', '.join(PEERS)}.")] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Of a turn, for each of its two windows.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="That all are kept on. Default: all.")] = None,
    rows: Annotated[int | None, typer.Option(min=0, help="Of the table that is opened; 0: none is.")] = None,
    data: Annotated[Path | None, typer.Option(help="Scratch space that is kept. Default: one that is not.")] = None,
    peers: Peers = DEFAULT,
    out: Annotated[Path, typer.Option(help="Folder for the table and the JSON.")] = Path("bench/results/loader"),
) -> None:
    """The loader beside its peers and beside ceilings, on the same images in one run."""
    chosen = tuple(names or PEERS)
    before = conditions()
    with contextlib.ExitStack() as stack:
        scratch = data or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bie-stream-bench-")))
        for name, why in install(list(chosen), peers).items():
            typer.echo(f"{name} cannot be installed: {why}", err=True)
        options = loader.Options(
            scratch, peers, tuple(WORKS[name] for name in works or WORKS), chosen,
            repeats=repeats or 5, seconds=seconds or 2.0, keep=data is not None,
        )  # fmt: skip
        if quick:
            options = _quick(options, works, repeats, seconds)
        kept_on = frozenset(sorted(os.sched_getaffinity(0))[:cores])
        out.mkdir(parents=True, exist_ok=True)
        with Interpreters(out / "loader.log", kept_on) as interpreters:
            found = list(loader.run(options, interpreters.ask, _say()))
        number = (_QUICK_ROWS if quick else _ROWS) if rows is None else rows
        started = start_up.measure(scratch, number) if number else None
        pythons = {python_of(PEERS[row.name], row.name, peers): row.name for row in found if row.outcomes}
        versions = {name: versions_in(python, _PACKAGES) for python, name in pythons.items()}
    text = markdown(found, started)
    record = {
        "conditions": {**before, "cores_used": sorted(kept_on), "versions": versions},
        "options": asdict(options), "rows": [loader.as_json(row) for row in found],
        "start_up": asdict(started) if started else None,
    }  # fmt: skip
    (out / "loader.json").write_text(json.dumps(record, indent=1, default=str) + "\n")
    (out / "README.md").write_text(_page(text, before, len(kept_on), options))
    typer.echo(text)


@app.command("models")
def models_(
    quick: Annotated[bool, typer.Option("--quick", help="Two small images, tiny transformers, fewer rounds.")] = False,
    names: Annotated[
        list[str] | None, typer.Option("--model", help="Of ae, vae, vqvae, mae, mae-agnostic, mae-encoder.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Rounds.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Of a turn.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Threads of torch. Default: as many as cores.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table and the JSON.")] = Path("bench/results/models"),
) -> None:
    """A training step of each model beside the plainest implementation of the same network, on the CPU."""
    from bench import models, models_report  # here: torch and timm take seconds, and the other commands need neither

    with one_line_errors():
        cases = models.chosen(names or models.CASES, quick)
    repeats, seconds = repeats or (3 if quick else 9), seconds or (0.2 if quick else 2.0)
    before = {**conditions(), **models.on_threads(cores)}
    found = list(models.run(cases, repeats, seconds, _say()))
    table = models_report.markdown(found)
    record = {
        "conditions": before, "options": {"quick": quick, "repeats": repeats, "seconds": seconds},
        "rows": [models_report.as_json(row) for row in found],
    }  # fmt: skip
    with atomic_file(out / "models.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    with atomic_file(out / "README.md") as path:
        path.write_text(f"{models_report.about(before, repeats, seconds)}\n\n{table}")
    typer.echo(table)
    raise typer.Exit(any(row.proof is None for row in found))


def _say() -> loader.Say:
    start = time.monotonic()
    return lambda line: typer.echo(f"{time.monotonic() - start:6.0f} s  {line}", err=True)


def _quick(
    options: loader.Options, works: list[str] | None, repeats: int | None, seconds: float | None
) -> loader.Options:
    """A quarter of the samples, in epochs as long."""
    chosen = options.works if works else (FIELDS,)
    small = tuple(replace(work, samples=max(work.samples // 4, 32), laps=work.laps * 4) for work in chosen)
    return replace(
        options, works=small, counts=(0, 1, 2), repeats=repeats or 3, seconds=seconds or 0.5, tuning_s=0.3
    )  # fmt: skip


def _page(text: str, before: dict[str, object], cores: int, options: loader.Options) -> str:
    about = (
        f"# Loaders\n\nMade by `python -m bench loader` on {before['date']}, commit {str(before['commit'])[:12]}"
        f"{' with changes' if before['changed_since'] else ''}: {before['processor']}, {cores} of {before['cores']} "
        f"cores, {before['memory_gb']} GB, page cache warm; load {before['load_at_start']} at the start. "
        f"{options.repeats} rounds of {options.seconds:g} s and {options.seconds / 2:g} s, in an order drawn for each; "
        "median and quartiles. Everything else is in `loader.json`."
    )
    return f"{about}\n\n{text}"


if __name__ == "__main__":
    app()
