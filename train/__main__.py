"""`python -m train embed | evaluate | export`."""

from pathlib import Path
from typing import Annotated

import typer

from bie_stream.errors import ConfigError, one_line_errors
from train.config import Pooling

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def embed(
    run: Annotated[Path, typer.Option(help="Run directory of `train.py`.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Dataset to embed.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Parquet to write.", show_default=False)],
    split: Annotated[str | None, typer.Option(help="Only this split. Default: all samples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 64,
    layer: Annotated[int | None, typer.Option(min=1, help="Stage or block, from 1. Default: the run's.")] = None,
    pooling: Annotated[Pooling | None, typer.Option(help="Over the layer's positions. Default: the run's.")] = None,
    channels: Annotated[str, typer.Option(help="Others than the run's, if its model takes any: 'DNA,Actin'.")] = "",
) -> None:
    """One row per sample: Metadata_* columns, then the features."""
    from train.evaluate.embed import embed_run

    with one_line_errors():
        names = [name.strip() for name in channels.split(",")] if channels else None
        samples = embed_run(run, data, out, split, batch_size, layer, pooling, names)
        typer.echo(
            f"{out}: {samples} samples; next: python -m train evaluate --embeddings {out} --label COLUMN --out DIR"
        )


@app.command()
def evaluate(
    embeddings: Annotated[Path, typer.Option(help="Parquet that `embed` wrote.", show_default=False)],
    label: Annotated[str, typer.Option(help="Column to predict.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder for the report.", show_default=False)],
    group: Annotated[str, typer.Option(help="Column whose values stay whole in folds.")] = "well",
    folds: Annotated[int, typer.Option(min=2, help="As many as groups, or more: leave each group out once.")] = 5,
    bins: Annotated[str, typer.Option(help="Cut a numeric label into ranges: '1-3,4-6,7-10'.")] = "",
    run: Annotated[Path | None, typer.Option(help="Run directory, if it has moved.")] = None,
    data: Annotated[Path | None, typer.Option(help="Dataset, if it has moved.")] = None,
) -> None:
    """A label table beside its baselines, and pictures: DIR/report.md."""
    from train.evaluate.question import Question
    from train.evaluate.report import evaluate

    with one_line_errors():
        print(evaluate(embeddings, out, Question(label, group, folds, _bins(bins)), run, data))
        for name in ("report.md", "metrics.json", "umap.png", "reconstruction.png"):
            typer.echo(out / name)


@app.command()
def export(
    run: Annotated[Path, typer.Option(help="Run directory of `train.py`.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write; an older export is replaced.", show_default=False)],
    licence: Annotated[
        str | None, typer.Option(help="SPDX identifier of the weights' licence, yours to choose: CC-BY-4.0.")
    ] = None,
) -> None:
    """The encoder as files for others: safetensors, PyTorch, ONNX, bioimage.io, a model card."""
    from train.export import export_run

    with one_line_errors():
        info = export_run(run, out, licence)
        typer.echo(f"{out}: encoder of {info.title}, {info.features} features; next: see {out / 'README.md'}")


def _bins(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [part.split("-") for part in text.split(",") if part]
        return tuple((float(low), float(high)) for low, high in pairs)
    except ValueError as error:
        raise ConfigError(f"--bins {text!r} should look like '1-3,4-6,7-10'") from error


if __name__ == "__main__":
    app()
