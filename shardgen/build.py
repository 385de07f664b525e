"""Runs a plan: shards in any order, each whole or not at all; the manifest last.

It can be killed at any moment and run again: finished shards of the same plan are kept, and the bytes are the same.
"""

import contextlib
import functools
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bie_stream import codecs
from bie_stream.atomic import PARTIAL, atomic_file
from bie_stream.codecs import Codec, Pixels
from bie_stream.errors import DatasetNotFound, SourceError
from bie_stream.shards import (
    MANIFEST,
    REJECT_COLUMNS,
    REJECTS,
    SHARDS,
    Manifest,
    ShardEntry,
    ShardWriter,
    read_manifest,
    shard_facts,
    tar_path,
    write_manifest,
)  # fmt: skip
from shardgen.convert import samples
from shardgen.engines import Advance, Engine, Facts, Shard, chosen
from shardgen.pixels import read_field
from shardgen.plan import Plan, Planned, np_size
from shardgen.statistics import ChannelCounts, merged

_VISIBLE_S = 60.0  # a client of NFS may hold for so long that a file is missing


def build(
    plan: Plan, out: Path, *, workers: int | None = None, max_rejects: int = 0, retry_rejects: bool = False,
    report: Path | None = None, engine: Engine = "processes", address: str | None = None,
) -> Manifest:  # fmt: skip
    """Writes the dataset of a plan into a folder.

    Args:
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
    run = chosen(engine, workers, address)
    there = _published(plan, out)
    if there is not None and not (retry_rejects and there.rejected):
        return there
    names = [f"{number:06d}" for number in range(len(plan.shards))]
    facts = {name: found for name in names if (found := _finished(out, name, plan))}
    if retry_rejects:
        (out / MANIFEST).unlink(missing_ok=True)  # until they are written anew there is no dataset
        facts = {name: found for name, found in facts.items() if not found["rejects"]}
    todo = [(name, shard) for name, shard in zip(names, plan.shards, strict=True) if name not in facts]
    kept, before = len(facts), plan.fields - sum(len(shard) for _, shard in todo)
    rejects = [reject for written in facts.values() for reject in written["rejects"]]
    _hold(rejects, max_rejects)
    write = functools.partial(write_shard, plan.without_fields, out.absolute(), max_rejects)
    with (
        tqdm(total=plan.fields, initial=before, unit="field", desc="build", dynamic_ncols=True, disable=None) as bar,
        contextlib.closing(run(write, todo, bar.update)) as finished,
    ):
        for name, written in finished:
            _require_visible(out, name, written)
            facts[name] = written
            rejects += written["rejects"]
            _hold(rejects, max_rejects)
            bar.set_postfix_str(_speed(plan, int(bar.n) - before, time.monotonic() - started, len(rejects)))
    manifest = _publish(plan, out, [facts[name] for name in names], names)
    if report is not None:
        seconds = time.monotonic() - started
        _write_report(report, manifest, plan, kept, plan.fields - before, seconds)
    return manifest


def begun_with(out: Path) -> Codec | None:
    """The codec of the shards that are there already: a build that chose it by measuring must not choose again."""
    found = (shard_facts(out, path.stem) for path in sorted((out / SHARDS).glob("*.parquet")))
    return next((facts["codec"] for facts in found if facts), None)


def some_samples(plan: Plan, most: int) -> Iterator[Pixels]:
    """Samples of fields from all over the plan; those that cannot be read are passed over."""
    fields = [planned for shard in plan.shards for planned in shard]
    step = max(1, len(fields) * len(plan.tiles) // most)
    for planned in fields[::step]:
        with contextlib.suppress(SourceError):
            pixels = read_field(plan.archive, planned.field, plan.dtype, plan.shape)
            yield from (sample for sample, _ in samples(plan, planned, pixels))


def _published(plan: Plan, out: Path) -> Manifest | None:
    try:
        there = read_manifest(out)
    except DatasetNotFound:
        return None
    if there.plan_sha256 != plan.sha256:
        raise SourceError(
            f"{out} already holds another dataset ({there.study}, plan {there.plan_sha256[:12]}); choose another --out"
        )
    return there


def _finished(out: Path, name: str, plan: Plan) -> Facts | None:
    facts = shard_facts(out, name)
    return facts if facts and facts["plan_sha256"] == plan.sha256 else None


def _require_visible(out: Path, name: str, written: Facts) -> None:
    """Holds a shard that was written, maybe on another machine, against what stands in the folder here."""
    deadline = time.monotonic() + _VISIBLE_S
    while (found := shard_facts(out, name)) is None or found["sha256"] != written["sha256"]:
        if time.monotonic() > deadline:
            raise SourceError(
                f"shard {name} was written, but {tar_path(out, name)} is not there or another; "
                "give --out a folder that all nodes share, under the same path"
            )
        with contextlib.suppress(OSError):
            os.scandir(out / SHARDS).close()  # to open a folder makes NFS ask the server what is in it
        time.sleep(0.1)


def _hold(rejects: list[dict[str, str]], max_rejects: int) -> None:
    if len(rejects) > max_rejects:
        allowed = f" ({len(rejects)} fields so far, --max-rejects is {max_rejects})" if max_rejects else ""
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


def write_shard(plan: Plan, out: Path, max_rejects: int, name: str, shard: Shard, advance: Advance) -> Facts:
    """Writes one shard; the same bytes wherever and whenever it runs. What it noted comes back.

    Raises:
        SourceError: more than `max_rejects` of its fields cannot be read; then no shard is left behind.
    """
    shards = tar_path(out, name).parent
    shards.mkdir(parents=True, exist_ok=True)
    # A folder of its own, because a worker that was believed dead may be writing the same shard.
    with tempfile.TemporaryDirectory(PARTIAL, f"{name}.", shards, ignore_cleanup_errors=True) as own:
        _write_samples(plan, Path(own), max_rejects, name, shard, advance)
        written = shard_facts(Path(own), name)
        assert written is not None, f"shard {name} was just written"
        if shard_facts(out, name) != written:  # else the other one was first, with the same bytes
            _move(tar_path(Path(own), name), tar_path(out, name))
    return written


def _move(own: Path, tar: Path) -> None:
    """The table comes last, and an older one goes first: a shard is finished when its table stands beside its tar."""
    tar.with_suffix(".parquet").unlink(missing_ok=True)
    for suffix in (".idx", ".tar", ".parquet"):
        own.with_suffix(suffix).replace(tar.with_suffix(suffix))


def _write_samples(plan: Plan, root: Path, max_rejects: int, name: str, shard: Shard, advance: Advance) -> None:
    counts = [ChannelCounts(plan.dtype) for _ in plan.archive.channels]
    rejects: list[dict[str, str]] = []
    with ShardWriter(root, name, plan.schema, plan.options.codec) as writer:
        for planned, pixels in _read(plan, shard):
            if isinstance(pixels, SourceError):
                field = planned.field
                rejects.append({"plate": field.plate, "well": field.well, "field": field.field, "reason": str(pixels)})
                _hold(rejects, max_rejects)
            else:
                for sample, row in samples(plan, planned, pixels):
                    writer.add(codecs.encode(sample, plan.options.codec), row)
                    for count, channel in zip(counts, sample, strict=True):
                        count.add(channel)
            advance(1)
        writer.facts = {
            "plan_sha256": plan.sha256,
            "codec": plan.options.codec,
            "rejects": rejects,
            "statistics": [count.dump() for count in counts],
        }


def _read(plan: Plan, shard: tuple[Planned, ...]) -> Iterator[tuple[Planned, Pixels | SourceError]]:
    """The pixels of each field, in order, or why there are none. From a server, several fields at once."""

    def read(planned: Planned) -> Pixels | SourceError:
        try:
            return read_field(plan.archive, planned.field, plan.dtype, plan.shape)
        except SourceError as error:
            return error

    at_once = plan.archive.files.at_once
    if at_once == 1:
        yield from ((planned, read(planned)) for planned in shard)
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


def _publish(plan: Plan, out: Path, facts: list[Facts], names: list[str]) -> Manifest:
    rejects = [reject for written in facts for reject in written["rejects"]]
    taken = sum(written["samples"] for written in facts)
    if not taken:
        raise SourceError(f"no field could be read; the first reason: {rejects[0]['reason']}")
    splits = dict.fromkeys(plan.options.splits, 0)
    for name in names:
        table = pq.read_table(tar_path(out, name).with_suffix(".parquet"), columns=["split"])
        for split in table["split"].to_pylist():
            splits[split] += 1
    _sweep(out, names)
    with atomic_file(out / REJECTS) as path:
        pq.write_table(pa.Table.from_pylist(rejects, REJECT_COLUMNS), path)
    archive = plan.archive
    manifest = Manifest(
        study=archive.study,
        source=archive.source,
        licence=archive.licence,
        citation=archive.citation,
        channels=archive.channels,
        dtype=plan.dtype,
        pixel_size_um=archive.pixel_size_um,
        codec=plan.options.codec,
        samples=taken,
        splits=splits,
        labels=plan.labels,
        rejected=len(rejects),
        statistics=merged((written["statistics"] for written in facts), plan.dtype, len(archive.channels)),
        shards=tuple(
            ShardEntry(name=name, samples=written["samples"], bytes=written["bytes"], sha256=written["sha256"])
            for name, written in zip(names, facts, strict=True)
        ),
        options=plan.options.model_dump(),
        plan_sha256=plan.sha256,
    )
    write_manifest(out, manifest)
    return manifest


def _sweep(out: Path, names: list[str]) -> None:
    """Removes what an earlier, different or killed build left among the shards."""
    keep = {f"{name}{suffix}" for name in names for suffix in (".tar", ".parquet", ".idx")}
    for path in (out / SHARDS).iterdir():
        if path.is_dir() and path.suffix == PARTIAL:
            shutil.rmtree(path, ignore_errors=True)  # one that was believed dead may still write there
        elif path.name not in keep and path.suffix in (".tar", ".parquet", ".idx", PARTIAL):
            path.unlink()
