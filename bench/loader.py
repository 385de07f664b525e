"""`python -m bench loader`: the loader against its peers and against ceilings, in turns of one run.

For each work: images are made, each contender's data set is written in its own best form, peers are tuned, and then
all take turns in an order that is drawn anew for each round. The first batch of each is verified.
"""

import dataclasses
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.environments import NotInstalled, python_of
from bench.peers import PEERS, Peer
from bench.processes import TurnError
from bench.turn import Outcome, Request
from bench.verify import UnequalWork, verify
from bench.works import PIXELS, Pixels, Work, read_pixels, write_pixels

Ask = Callable[[Path, Request], Outcome | None]
Say = Callable[[str], None]

_FIRST_PASS_S = 4.0  # at most, for ours: it verifies each payload once, and that is not the rate of later epochs


@dataclass(frozen=True)
class Options:
    """How much is measured.

    Attributes:
        data: where data sets are written.
        environments: of peers that have their own.
        names: in PEERS.
        counts: of those that a contender would try, these.
        seconds: of a turn's first window; its second is half as long.
        tuning_s: the same, while peers are tuned.
        keep: data sets stay, and are found again.
    """

    data: Path
    environments: Path
    works: tuple[Work, ...]
    names: tuple[str, ...]
    counts: tuple[int, ...] = (0, 1, 2, 4)
    repeats: int = 5
    seconds: float = 2.0
    tuning_s: float = 1.0
    keep: bool = False


@dataclass
class Row:
    """One contender on one work.

    Attributes:
        outcomes: of each round.
        tuned: batches per second of each count that was tried.
        why: it has no outcomes.
        verified: its first batch was held against the reference.
    """

    work: Work
    name: str
    workers: int = 0
    outcomes: list[Outcome] = field(default_factory=list)
    tuned: dict[int, float] = field(default_factory=dict)
    why: str = ""
    verified: bool = False

    @property
    def peer(self) -> Peer:
        """Who it is."""
        return PEERS[self.name]


def run(options: Options, ask: Ask, say: Say) -> Iterator[Row]:
    """All rows of all works, as each work is done."""
    for work in options.works:
        say(f"{work.name}: images")
        root = options.data / work.images
        if not (root / PIXELS).with_suffix(".json").exists():
            root.mkdir(parents=True, exist_ok=True)
            write_pixels(root, work)
        yield from _Contest(options, ask, say, root, *read_pixels(root, work)).run()


@dataclass(frozen=True)
class _Contest:
    """One work: who takes part, and all rounds."""

    options: Options
    ask: Ask
    say: Say
    root: Path
    pixels: Pixels
    work: Work

    def run(self) -> list[Row]:
        rows = [row for name in self.options.names if self.work.codec in PEERS[name].forms for row in self._rows(name)]
        for turn in range(self.options.repeats):
            for row in random.sample(rows, len(rows)):
                if not row.why:
                    self._take_turn(row)
            self.say(f"{self.work.name}: round {turn + 1} of {self.options.repeats}")
        if not self.options.keep:
            for folder in self.root.glob("*/"):
                shutil.rmtree(folder)
        return rows

    def _rows(self, name: str) -> list[Row]:
        """Of ours and of ceilings one for each count, of peers the best; of who is not there one that says so."""
        peer = PEERS[name]
        self.say(f"{self.work.name}: {peer.title}")
        try:
            self._prepare(name)
        except (NotInstalled, TurnError) as error:
            return [Row(self.work, name, why=str(error))]
        counts = [count for count in peer.counts if count in self.options.counts]
        if peer.kind == "peer":
            return [self._tuned(name, counts)]
        return [Row(self.work, name, count) for count in counts]

    def _prepare(self, name: str) -> None:
        """Writes what it reads unless it is there; what was begun and not finished is written anew."""
        folder, peer = self.root / self._folder(name), PEERS[name]
        python = python_of(peer, name, self.options.environments)
        store = peer.forms[self.work.codec].store
        ready = folder / "ready"
        if not store or ready.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        own = python if store == peer.module else Path(sys.executable)
        self.ask(own, Request(store, str(self.root), folder.name, self.work))
        ready.touch()

    def _tuned(self, name: str, counts: Sequence[int]) -> Row:
        row = Row(self.work, name)
        for count in counts:
            try:
                row.tuned[count] = self._turn(name, count, self.options.tuning_s, None).summed.rate
            except TurnError as error:
                row.why = str(error)
        if row.tuned:
            row.workers, row.why = max(row.tuned, key=row.tuned.__getitem__), ""
        return row

    def _take_turn(self, row: Row) -> None:
        sample = self.root / "first_batch.npy" if row.peer.delivers and not row.verified else None
        try:
            row.outcomes.append(self._turn(row.name, row.workers, self.options.seconds, sample))
            if sample is not None:
                verify(sample, self.pixels, self.work)
                row.verified = True
            _hold(row)
        except (TurnError, UnequalWork) as error:
            row.why = f"{type(error).__name__}: {error}"
            row.outcomes.clear()
            self.say(f"{self.work.name}: {row.peer.title}: {row.why}")

    def _turn(self, name: str, count: int, seconds: float, sample: Path | None) -> Outcome:
        peer = PEERS[name]
        folder = self._folder(name)
        _touch(self.root / folder if folder else self.root / PIXELS)
        outcome = self.ask(
            python_of(peer, name, self.options.environments),
            Request(
                peer.module, str(self.root), folder, self.work, count, dict(peer.options), seconds,
                pass_s=_FIRST_PASS_S if peer.kind == "ours" else min(1.0, seconds),
                sample=str(sample) if sample else None,
            ),
        )  # fmt: skip
        assert outcome is not None
        return outcome

    def _folder(self, name: str) -> str:
        store = PEERS[name].forms[self.work.codec].store
        return f"{store}-{self.work.codec}" if store else ""


def _hold(row: Row) -> None:
    """Every turn delivers what was asked, and its numbers are those of normalised images; raises UnequalWork."""
    last = row.outcomes[-1]
    if not row.peer.delivers:
        return
    if last.shape != row.work.deliverable or last.dtype != "torch.float32":
        raise UnequalWork(f"batches {list(last.shape)} {last.dtype}, asked for {list(row.work.deliverable)} float32")
    if abs(last.summed.mean) > 0.5:
        raise UnequalWork(f"a mean of {last.summed.mean:.2g} standard deviations over all batches, expected none")


def _touch(place: Path) -> None:
    """Reads all files, so that they are in the page cache; one under several names once."""
    buffer = memoryview(bytearray(2**22))
    for path in {file.stat().st_ino: file for file in _files(place)}.values():
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while file.readinto(buffer):
                pass


def _files(place: Path) -> Iterable[Path]:
    return (path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def as_json(row: Row) -> dict[str, object]:
    """With every outcome of every round."""
    return dataclasses.asdict(row)
