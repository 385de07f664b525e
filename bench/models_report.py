"""Rows of `bench.models` → a table. There is a ratio of equal work only, round by round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

from bench.loader_report import Spread, spread
from bench.models import Row, Step
from bench.verify import UnequalWork

_HEAD = (
    "| network | images | parameters | ours, ms a step (quartiles) | plain | plain / ours | …of processor time | "
    "gradients differ by | statistics |"
)


def wall_s(step: Step) -> float:
    """What tables and ratios are made of."""
    return step.wall_s


def cpu_s(step: Step) -> float:
    """The same in processor time."""
    return step.cpu_s


def ratio(row: Row, read: Callable[[Step], float] = wall_s) -> Spread:
    """Of the plain one's seconds to ours, round by round: 1 or more where ours is at least as fast.

    Raises:
        UnequalWork: it is not proven that both do the same.
    """
    if row.proof is None:
        raise UnequalWork(f"{row.case.title} cannot be compared: {row.why}")
    return spread([read(plain) / read(ours) for ours, plain in zip(row.ours, row.plain, strict=True)])


def markdown(rows: Sequence[Row]) -> str:
    """A table, and below it what could not be compared."""
    lines = [_line(row) for row in rows if row.proof is not None]
    refused = [f"- {row.case.title}: not equal work: {row.why}" for row in rows if row.proof is None]
    return "\n".join([_HEAD, "|---|---|--:|--:|--:|--:|--:|--:|--:|", *lines, "", *refused]).strip() + "\n"


def about(before: Mapping[str, object], repeats: int, seconds: float) -> str:
    """Title and conditions of a run."""
    return (
        f"# Models\n\nMade by `python -m bench models` on {before['date']}, commit {str(before['commit'])[:12]}"
        f"{' with changes' if before['changed_since'] else ''}: {before['processor']}, {before['threads']} threads, "
        f"torch {before['torch']}, float32; load {before['load_at_start']} at the start. {repeats} rounds of "
        f"{seconds:g} s for each of the two, who begin by turns; median and quartiles. Everything else is in "
        "`models.json`."
    )


def as_json(row: Row) -> dict[str, object]:
    """Everything that was measured, and of what."""
    case = row.case
    return {
        "name": row.name, "title": case.title, "config": case.config.model_dump(mode="json"), "batch": case.batch,
        "channels": case.channels, "crop": case.crop, "encoder_only": case.encoder_only,
        "proof": asdict(row.proof) if row.proof else None, "why": row.why,
        "ours": [step._asdict() for step in row.ours], "plain": [step._asdict() for step in row.plain],
        "plain_to_ours": ratio(row)._asdict() if row.proof else None,
        "plain_to_ours_cpu": ratio(row, cpu_s)._asdict() if row.proof else None,
    }  # fmt: skip


def _line(row: Row) -> str:
    case, proof = row.case, row.proof
    assert proof is not None, "of these a line is made"
    ours, plain = (spread([1e3 * step.wall_s for step in steps]) for steps in (row.ours, row.plain))
    cells = [
        case.title,
        f"{case.batch} × {case.channels} × {case.crop} × {case.crop}",
        f"{proof.parameters:,}",
        _text(ours, ",.1f"),
        _text(plain, ",.1f"),
        _text(ratio(row), ".2f"),
        _text(ratio(row, cpu_s), ".2f"),
        f"{proof.gradient_difference:.0e}",
        f"{proof.buffer_difference:.0e}",
    ]
    return f"| {' | '.join(cells)} |"


def _text(values: Spread, form: str) -> str:
    return f"{values.median:{form}} ({values.low:{form}}–{values.high:{form}})"
