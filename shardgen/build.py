"""Runs a plan: shards in any order, each whole or not at all; the manifest last.

It can be killed at any moment and run again: finished shards of the same plan are kept, and the bytes are the same.
"""

import contextlib
import errno
import functools
import json
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bie_stream import codecs
from bie_stream.atomic import PARTIAL, atomic_file
from bie_stream.codecs import Codec, Pixels
from bie_stream.errors import DatasetNotFound, SourceError
from bie_stream.folder import Folder, Location, folder_at
from bie_stream.shards import (
    MANIFEST,
    REJECT_COLUMNS,
    REJECTS,
    SHARDS,
    ChannelStatistics,
    Manifest,
    PlateStatistics,
    ShardEntry,
    ShardWriter,
    read_manifest,
    shard_facts,
    shard_file,
    write_manifest,
)  # fmt: skip
from shardgen.archive import describe_place
from shardgen.convert import samples
from shardgen.engines import Advance, Engine, Facts, Shard, chosen
from shardgen.masks import objects_of, read_mask
from shardgen.pixels import read_field
from shardgen.plan import Plan, Planned, np_size
from shardgen.statistics import ChannelCounts, PlateSums, plate_statistics

_LOOKS_AT_ONCE = 16  # at what is there already: in a store, each is a request
_VISIBLE_S = 60.0  # a client of NFS may hold for so long that a file is missing


def build(
    plan: Plan, out: Location, *, workers: int | None = None, max_rejects: int = 0, retry_rejects: bool = False,
    report: Path | None = None, engine: Engine = "processes", address: str | None = None,
) -> Manifest:  # fmt: skip
    """Writes the dataset of a plan into a folder, or into an object store.

    Args:
        out: a path, or a URL such as `s3://bucket/plates`; to a store each worker sends its shards when they are done.
        workers: shards written at once; None for one per core, and no more than there are shards to write.
        max_rejects: how many fields may be left out (and listed in `rejects.parquet`) because a plane is missing
            or damaged.
        retry_rejects: write those shards anew that lack fields, in case they can be read now.
        report: JSON to write about this run: how long, how much, how fast.
        engine: who writes the shards; all nodes of a Ray cluster must see the archive and `out` under these paths.
        address: of the Ray cluster, as `engines.ray` takes it.

    Raises:
        SourceError: too many fields cannot be read, or the folder holds another dataset.
    """
    started = time.monotonic()
    run, folder = chosen(engine, workers, address), folder_at(out)
    there = _published(plan, folder)
    names = [f"{number:06d}" for number in range(len(plan.shards))]
    written = _Written(plan)
    for name, facts in _finished(folder, names, plan):
        if not (retry_rejects and facts["rejects"]):
            written.add(name, facts)
    if there is not None and len(written.shards) == len(names):
        return there
    if there is not None:
        folder.remove(MANIFEST)  # until all shards are there again, there is no dataset
    todo = [(name, shard) for name, shard in zip(names, plan.shards, strict=True) if name not in written.shards]
    kept, before = len(written.shards), plan.fields - sum(len(shard) for _, shard in todo)
    _hold(written.rejects, max_rejects)
    write = functools.partial(write_shard, plan.without_fields, folder, max_rejects)
    with (
        _full_disk_named(folder),
        tqdm(total=plan.fields, initial=before, unit="field", desc="build", dynamic_ncols=True, disable=None) as bar,
        contextlib.closing(run(write, todo, bar.update)) as finished,
    ):
        for name, facts in finished:
            _require_visible(folder, name, facts)
            _hold(facts["rejects"], max_rejects, written.rejected)
            written.add(name, facts)
            done = int(bar.n) - before
            bar.set_postfix_str(_speed(plan, done, time.monotonic() - started, written.rejected))
    manifest = _publish(plan, folder, written, names)
    if report is not None:
        seconds = time.monotonic() - started
        _write_report(report, manifest, plan, kept, plan.fields - before, seconds)
    return manifest


class _Written:
    """What is known of the shards that are written, in any order; of a size that does not grow with their pixels."""

    def __init__(self, plan: Plan) -> None:
        self.shards: dict[str, ShardEntry] = {}
        self.splits: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.rejected = 0
        self._rejects: dict[str, list[dict[str, Any]]] = {}
        self._counts = [ChannelCounts(plan.dtype) for _ in plan.archive.channels]
        self._plates: list[dict[str, Any]] = []

    def add(self, name: str, facts: Facts) -> None:
        """Takes in one shard."""
        self.shards[name] = ShardEntry(name=name, **{key: facts[key] for key in ("samples", "bytes", "sha256")})
        self.splits.update(facts["splits"])
        self.left_out.update(facts["left_out"])
        self.rejected += len(facts["rejects"])
        self._rejects[name] = facts["rejects"]
        for counts, counted in zip(self._counts, facts["statistics"], strict=True):
            counts.merge(counted)
        self._plates.append(facts["plates"])

    @property
    def rejects(self) -> list[dict[str, Any]]:
        """Of all shards, in their order."""
        return [reject for name in sorted(self._rejects) for reject in self._rejects[name]]

    @property
    def statistics(self) -> tuple[ChannelStatistics, ...]:
        """Of each channel, over all shards."""
        return tuple(counts.statistics() for counts in self._counts)

    @property
    def plates(self) -> dict[str, tuple[PlateStatistics, ...]]:
        """Of each plate and channel, over all shards."""
        return plate_statistics(self._plates)


def begun_with(out: Location) -> Codec | None:
    """The codec of the shards that are there already: a build that chose it by measuring must not choose again."""
    folder = folder_at(out)
    tables = (name for name in folder.names(SHARDS) if name.endswith(".parquet"))
    found = (shard_facts(folder, table.removesuffix(".parquet")) for table in tables)
    return next((facts["codec"] for facts in found if facts), None)


def some_samples(plan: Plan, most: int) -> Iterator[Pixels]:
    """Samples of fields from all over the plan; those that cannot be read are passed over."""
    fields = [planned for shard in plan.shards for planned in shard]
    step = max(1, len(fields) * max(1, len(plan.tiles)) // most)
    for planned in fields[::step]:
        with contextlib.suppress(SourceError):
            planned, pixels = _field(plan, planned)
            yield from (sample[0] for sample in samples(plan, planned, pixels) if not isinstance(sample, str))


def _published(plan: Plan, out: Folder) -> Manifest | None:
    try:
        there = read_manifest(out)
    except DatasetNotFound:
        return None
    if there.plan_sha256 != plan.sha256:
        raise SourceError(
            f"{out} already holds another dataset ({there.study}, plan {there.plan_sha256[:12]}), which differs in "
            f"{_differences(there, plan)}; choose another --out, or remove it"
        )
    return there


def _differences(there: Manifest, plan: Plan) -> str:
    """What is not the same in a dataset and in a plan, for a person."""
    archive = plan.archive
    pairs = {
        "study": (there.study, archive.study),
        "channels": (there.channels, archive.channels),
        "pixels": (there.dtype, plan.dtype),
        "label columns": (there.labels, plan.labels),
        "licence or citation": ((there.licence, there.citation), (archive.licence, archive.citation)),
        **{name: (there.options.get(name), value) for name, value in plan.options.model_dump().items()},
    }
    names = [name for name, (before, now) in pairs.items() if before != now]
    return ", ".join(names) or "which fields it has, or in what their labels say"


def _finished(out: Folder, names: list[str], plan: Plan) -> Iterator[tuple[str, Facts]]:
    """The shards of this plan that are there already, and whole."""
    files = set(out.names(SHARDS))
    there = [name for name in names if f"{name}.parquet" in files]
    with ThreadPoolExecutor(_LOOKS_AT_ONCE) as pool:
        for name, facts in zip(there, pool.map(functools.partial(shard_facts, out), there), strict=True):
            if facts and facts["plan_sha256"] == plan.sha256:
                yield name, facts


@contextlib.contextmanager
def _full_disk_named(out: Folder) -> Iterator[None]:
    """The system does not say which of them is full."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SourceError(f"{out}: {error.strerror}; make room, then the same command goes on") from error
        raise


def _require_visible(out: Folder, name: str, written: Facts) -> None:
    """Holds a shard that was written, maybe on another machine, against what stands in the folder here."""
    deadline = time.monotonic() + _VISIBLE_S
    while (found := shard_facts(out, name)) is None or found["sha256"] != written["sha256"]:
        if time.monotonic() > deadline:
            raise SourceError(
                f"shard {name} was written, but {out}/{shard_file(name)} is not there or another; "
                "give --out a folder that all nodes share, under the same path"
            )
        out.names(SHARDS)  # makes a client of NFS look again
        time.sleep(0.1)


def _hold(rejects: list[dict[str, Any]], max_rejects: int, before: int = 0) -> None:
    """Holds fields that cannot be read, and how many there were before them, to what is allowed."""
    count = before + len(rejects)
    if rejects and count > max_rejects:
        allowed = f" ({count} fields so far, --max-rejects is {max_rejects})" if max_rejects else ""
        raise SourceError(
            f"{rejects[-1]['reason']}{allowed}; mend the archive, or leave such fields out with --max-rejects"
        )


def _speed(plan: Plan, fields: int, seconds: float, rejects: int) -> str:
    planes = fields * len(plan.archive.channels) / seconds
    height, width = plan.shape
    return f"{planes:.0f} planes/s, {planes * height * width * np_size(plan.dtype) / 1e6:.0f} MB/s, {rejects} rejects"


def _write_report(path: Path, manifest: Manifest, plan: Plan, kept: int, fields: int, seconds: float) -> None:
    height, width = plan.shape
    planes = fields * len(plan.archive.channels)
    pixel_bytes = planes * height * width * np_size(plan.dtype)
    said = {
        "plan_sha256": plan.sha256,
        "seconds": round(seconds, 3),
        "fields": fields,
        "planes": planes,
        "planes_per_s": round(planes / seconds, 1),
        "pixel_bytes_per_s": round(pixel_bytes / seconds),
        "shards_kept": kept,
        "shards_written": len(manifest.shards) - kept,
        "samples": manifest.samples,
        "rejected": manifest.rejected,
    }
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(said, indent=2) + "\n")


def write_shard(plan: Plan, out: Location, max_rejects: int, name: str, shard: Shard, advance: Advance) -> Facts:
    """Writes one shard; the same bytes wherever and whenever it runs. What it noted comes back.

    Raises:
        SourceError: more than `max_rejects` of its fields cannot be read; then no shard is left behind.
    """
    folder = folder_at(out)
    # A folder of its own, because a worker that was believed dead may be writing the same shard.
    with folder.scratch(name) as own:
        _write_samples(plan, own, max_rejects, name, shard, advance)
        written = shard_facts(own, name)
        assert written is not None, f"shard {name} was just written"
        if shard_facts(folder, name) != written:  # else the other one was first, with the same bytes
            _move(own, folder, name)
    return written


def _move(own: Path, out: Folder, name: str) -> None:
    """The table comes last, and an older one goes first: a shard is finished when its table stands beside its tar."""
    out.remove(shard_file(name, ".parquet"))
    for suffix in (".idx", ".tar", ".parquet"):
        out.put(own / shard_file(name, suffix), shard_file(name, suffix))


def _write_samples(plan: Plan, root: Path, max_rejects: int, name: str, shard: Shard, advance: Advance) -> None:
    counts = [ChannelCounts(plan.dtype) for _ in plan.archive.channels]
    plates = PlateSums(counts)
    splits: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    rejects: list[dict[str, Any]] = []
    with ShardWriter(root, name, plan.schema, plan.options.codec) as writer:
        for planned, read in _read(plan, shard):
            if isinstance(read, SourceError):
                place = dict(zip(("plate", "well", "field", "z", "t"), planned.field.place, strict=True))
                rejects.append({**place, "reason": str(read)})
                _hold(rejects, max_rejects)
            else:
                for sample in samples(plan, *read):
                    if isinstance(sample, str):
                        left_out[sample] += 1
                        continue
                    pixels, row = sample
                    writer.add(codecs.encoded_parts(pixels, plan.options.codec), row)
                    splits[row["split"]] += 1
                    plates.turn_to(row["plate"])
                    for count, channel in zip(counts, pixels, strict=True):
                        count.add(channel)
            advance(1)
        writer.facts = {
            "plan_sha256": plan.sha256,
            "codec": plan.options.codec,
            "rejects": rejects,
            "splits": splits,
            "left_out": left_out,
            "statistics": [count.dump() for count in counts],
            "plates": plates.dump(),
        }


def _field(plan: Plan, planned: Planned, out: Pixels | None = None) -> tuple[Planned, Pixels]:
    """A field with its objects, and its pixels."""
    if plan.archive.masks is not None:
        if planned.mask is None:
            raise SourceError(f"{describe_place(planned.field.place)} has no mask")
        planned = replace(planned, objects=objects_of(read_mask(plan.archive.masks, planned.mask, plan.shape)))
    return planned, read_field(plan.archive, planned.field, plan.dtype, plan.shape, out)


def _read(plan: Plan, shard: Shard) -> Iterator[tuple[Planned, tuple[Planned, Pixels] | SourceError]]:
    """Each field as `_field` gives it, in order, or why it cannot; its pixels hold until the next ones come.

    From a server, several fields at once.
    """

    def read(planned: Planned, out: Pixels | None = None) -> tuple[Planned, Pixels] | SourceError:
        try:
            return _field(plan, planned, out)
        except SourceError as error:
            return error

    at_once = plan.archive.files.at_once
    if at_once == 1:
        again = np.empty((len(plan.archive.channels), *plan.shape), plan.dtype)
        yield from ((planned, read(planned, again)) for planned in shard)
        return
    with ThreadPoolExecutor(at_once) as pool:
        reading = deque((planned, pool.submit(read, planned)) for planned in shard[:at_once])
        for later in [*shard[at_once:], *[None] * at_once]:
            if not reading:
                return
            planned, future = reading.popleft()
            yield planned, future.result()
            if later is not None:
                reading.append((later, pool.submit(read, later)))


def _publish(plan: Plan, out: Folder, written: _Written, names: list[str]) -> Manifest:
    shards, rejects = tuple(written.shards[name] for name in names), written.rejects
    taken = sum(shard.samples for shard in shards)
    if not taken:
        left_out = ", ".join(f"{count} {why}" for why, count in written.left_out.items())
        reason = f"the first reason: {rejects[0]['reason']}" if rejects else f"left out: {left_out}"
        raise SourceError(f"there is no sample; {reason}")
    _sweep(out, names)
    table = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rejects, REJECT_COLUMNS), table)
    out.write(REJECTS, table.getvalue().to_pybytes())
    archive = plan.archive
    manifest = Manifest(
        study=archive.study,
        source=archive.source,
        licence=archive.licence,
        citation=archive.citation,
        channels=archive.channels,
        dtype=plan.dtype,
        pixel_size_um=archive.pixel_size_um and archive.pixel_size_um * plan.options.bin,
        codec=plan.options.codec,
        samples=taken,
        splits={name: written.splits[name] for name in plan.options.splits},
        labels=plan.labels,
        rejected=len(rejects),
        left_out=dict(sorted(written.left_out.items())),
        statistics=written.statistics,
        plates=written.plates,
        shards=shards,
        options=plan.options.model_dump(),
        plan_sha256=plan.sha256,
    )
    write_manifest(out, manifest)
    return manifest


def _sweep(out: Folder, names: list[str]) -> None:
    """Removes what an earlier, different or killed build left, and nothing that a build does not name so."""
    keep = {f"{name}{suffix}" for name in names for suffix in (".tar", ".parquet", ".idx")}
    for name in out.names(SHARDS):
        if name not in keep and re.fullmatch(rf"\d{{6,}}\.(tar|parquet|idx)({re.escape(PARTIAL)})?", name):
            out.remove(f"{SHARDS}/{name}")
    for name in out.names(""):
        if re.fullmatch(rf"\d{{6,}}\..*{re.escape(PARTIAL)}/", name):
            out.remove(name.removesuffix("/"))
