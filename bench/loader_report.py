"""Rows of `bench.loader` → tables. A ratio is made of equal work only, round by round."""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.loader import Row
from bench.start_up import StartUp
from bench.turn import Outcome, Window
from bench.verify import UnequalWork

Read = Callable[[Outcome], Window]


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


class Aim(NamedTuple):
    """A number to be reached, and what was."""

    text: str
    found: str
    reached: bool


def summed(outcome: Outcome) -> Window:
    """The window in which every number was read by the taker: what tables and ratios are made of."""
    return outcome.summed


def taken(outcome: Outcome) -> Window:
    """The window in which batches were only handed over."""
    return outcome.taken


def spread(values: Sequence[float]) -> Spread:
    """Of one value, that value thrice."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def rates(row: Row, read: Read = summed) -> list[float]:
    """Samples per second, of each round."""
    return [read(outcome).rate * row.work.batch for outcome in row.outcomes]


def ratio(row: Row, to: Row, read: Read = summed) -> Spread:
    """Of rates, round by round.

    Raises:
        UnequalWork: the two did not deliver the same, or it was not verified.
    """
    same = row.work == to.work and len(row.outcomes) == len(to.outcomes) > 0
    shapes = {(outcome.shape, outcome.dtype) for outcome in (*row.outcomes, *to.outcomes)}
    if not (same and row.verified and to.verified and len(shapes) == 1):
        raise UnequalWork(f"{row.name} and {to.name} on {row.work.name} cannot be compared")
    return spread([a / b for a, b in zip(rates(row, read), rates(to, read), strict=True)])


def cpu_us(row: Row) -> Spread:
    """CPU microseconds of a sample, of all processes, without the taker's sum."""
    return spread([o.taken.cpu_s / o.taken.batches / row.work.batch * 1e6 for o in row.outcomes])


def markdown(rows: Sequence[Row], start_up: StartUp | None) -> str:
    """Everything, for a person."""
    names = list(dict.fromkeys(row.work.name for row in rows))
    parts = [_table([row for row in rows if row.work.name == name]) for name in names]
    found = aims(rows, start_up)
    if found:
        lines = [f"| {aim.text} | {aim.found} | {'yes' if aim.reached else '**no**'} |" for aim in found]
        parts.append("\n".join(["### What was aimed at", "", "| aim | found | reached |", "|---|--:|---|", *lines]))
    if start_up is not None:
        parts.append(
            f"### Start\n\nA table of {start_up.samples:,} samples: opened in {start_up.open_s:.2f} s, first batch "
            f"after {start_up.first_batch_s:.2f} s, at most {start_up.peak_mb:.0f} MB resident, of which "
            f"{start_up.imported_mb:.0f} MB before it was opened (torch)."
        )
    return "\n\n".join(parts) + "\n"


_HEAD = (
    "| | reads | workers, threads | samples/s (quartiles) | only handed over | of the bare kernel (quartiles) | "
    "CPU µs a sample | first batch s | first pass /s | peak MB | own MB |"
)


def _table(rows: Sequence[Row]) -> str:
    work = rows[0].work
    shape = " × ".join(map(str, work.shape))
    title = f"### {work.name}: {shape} uint16, crop {work.crop}, batches of {work.batch}, ours as {work.codec}"
    measured = sorted((row for row in rows if row.outcomes), key=lambda row: -spread(rates(row)).median)
    lines = [_line(row, rows) for row in measured]
    missing = [f"- {row.peer.title}: {row.why}" for row in rows if not row.outcomes]
    return "\n".join([title, "", _HEAD, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|", *lines, "", *missing]).strip()


def _line(row: Row, rows: Sequence[Row]) -> str:
    handed, passes = spread(rates(row, taken)), [o.first_pass for o in row.outcomes]
    cells = [
        f"**{row.peer.title}**" if row.peer.kind == "ours" else row.peer.title,
        row.peer.forms[row.work.codec].title,
        f"{row.workers}",
        _text(spread(rates(row)), ",.0f") if row.peer.delivers else "",
        f"{handed.median:,.0f}",
        _of_kernel(row, rows),
        f"{cpu_us(row).median:,.0f}",
        f"{statistics.median(o.first_batch_s for o in row.outcomes):.2f}",
        f"{statistics.median(p.rate for p in passes) * row.work.batch:,.0f}",
        f"{max(o.peak_mb for o in row.outcomes):,.0f}",
        f"{max(o.own_mb for o in row.outcomes):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _of_kernel(row: Row, rows: Sequence[Row]) -> str:
    """Percent of the bare kernel on as many threads; of a ceiling that does something else, its GB/s."""
    if not row.peer.delivers:
        return f"({spread(rates(row, taken)).median * _moved(row) / 1e9:.1f} GB/s)"
    kernel = _one(rows, "kernel", max(row.workers, 1))
    if kernel is None:
        return ""
    try:
        return _text(ratio(row, kernel), ".0%")
    except UnequalWork:
        return "not equal work"


def _moved(row: Row) -> int:
    """Bytes that a ceiling copies or reads for a sample."""
    channels, height, width = row.work.shape
    return 4 * channels * row.work.crop**2 if row.name == "memcpy" else 2 * channels * height * width


def _text(values: Spread, form: str) -> str:
    return f"{values.median:{form}} ({values.low:{form}}–{values.high:{form}})"


def _one(rows: Sequence[Row], name: str, workers: int) -> Row | None:
    found = [row for row in rows if row.name == name and row.workers == workers and row.outcomes]
    return found[0] if found else None


def best(rows: Sequence[Row]) -> Row | None:
    """The fastest of those that were measured and verified."""
    return max((row for row in rows if row.verified), key=lambda row: spread(rates(row)).median, default=None)


def aims(rows: Sequence[Row], start_up: StartUp | None) -> list[Aim]:
    """What the loader is to reach (issue 4), as far as it was measured; ours is the native back end at its best."""

    def of(work: str, *names: str) -> list[Row]:
        return [row for row in rows if row.work.name == work and row.name in names]

    def times(text: str, work: str, least: float, peers: Sequence[Row]) -> list[Aim]:
        ours, peer = best(of(work, "native")), best(peers)
        if ours is None or peer is None:
            return []
        found = ratio(ours, peer)
        return [Aim(f"{work}: ≥ {least:g} × {text} ({peer.peer.title})", _text(found, ".1f"), found.median >= least)]

    whole = [row for row in rows if row.work.name == "fields" and row.peer.kind == "peer" and row.peer.whole]
    compressed = [row for row in rows if row.work.name == "fields-blosc2" and row.peer.kind == "peer"]
    return [
        *times("the best peer that reads whole samples", "fields", 5, whole),
        *times("torch + np.memmap", "fields", 2, of("fields", "memmap")),
        *times("webdataset", "fields", 30, of("fields", "webdataset")),
        *_kernel_aim(of("fields", "native"), of("fields", "kernel")),
        *_cpu_aim(best(of("fields", "native")), best(of("fields", "webdataset"))),
        *times("webdataset", "planes", 50, of("planes", "webdataset")),
        *times("the best peer with its best lossless compression", "fields-blosc2", 3, compressed),
        *_start_up_aims(start_up),
    ]


def _kernel_aim(ours: Sequence[Row], kernels: Sequence[Row]) -> list[Aim]:
    pairs = [(row, kernel) for row in ours for kernel in kernels if row.workers == kernel.workers]
    found = [(row.workers, ratio(row, kernel)) for row, kernel in pairs if row.verified and kernel.verified]
    return [
        Aim(f"fields: ≥ 80 % of the bare kernel on {count} threads", _text(of, ".0%"), of.median >= 0.8)
        for count, of in found
    ]


def _cpu_aim(ours: Row | None, webdataset: Row | None) -> list[Aim]:
    if ours is None or webdataset is None:
        return []
    own, other = cpu_us(ours).median, cpu_us(webdataset).median
    text = "fields: CPU seconds a sample ≤ 1/20 of webdataset's"
    return [Aim(text, f"{own:,.0f} of {other:,.0f} µs", own <= other / 20)]


def _start_up_aims(start_up: StartUp | None) -> list[Aim]:
    if start_up is None:
        return []
    seconds, peak = start_up.first_batch_s, start_up.peak_mb
    table = f"a table of {start_up.samples:,} samples"
    return [
        Aim(f"first batch of {table} in under 3 s", f"{seconds:.2f} s", seconds < 3),
        Aim(f"{table} in under 1 GB", f"{peak:.0f} MB", peak < 1000),
    ]
