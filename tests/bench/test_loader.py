"""The bench of loaders on a few tiny images: is what it says true? Not how fast anything is."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from bench import loader, start_up, turn
from bench.environments import install
from bench.loader import Options, Row
from bench.loader_report import aims, markdown, ratio, spread
from bench.peers import PEERS
from bench.processes import Interpreters, TurnError
from bench.turn import Outcome, Request, Window
from bench.verify import UnequalWork, verify
from bench.works import Codec, Pixels, Work, read_pixels, write_pixels

TINY = Work("fields", (2, 48, 40), crop=32, samples=16, laps=2, batch=8)
HERE = [name for name, peer in PEERS.items() if not peer.packages]  # those that `make test` has installed


def here(_: Path, request: Request) -> Outcome | None:
    """A turn in this process."""
    return turn.perform(request)


def measured(data: Path, work: Work, names: list[str], count: int) -> list[Row]:
    options = Options(
        data, data / "none", (work,), tuple(names), counts=(count,), repeats=2, seconds=0.01, tuning_s=0.01
    )  # fmt: skip
    return list(loader.run(options, here, lambda line: None))


# In this process peers do not end with their process; webdataset leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("codec", ["npy", "tif", "jph", "blosc2"])
def test_every_contender_that_is_here_delivers_the_reference_pixels(tmp_path: Path, codec: Codec) -> None:
    takers = [name for name in HERE if codec in PEERS[name].forms]
    work = replace(TINY, codec=codec)
    rows = [
        row
        for unit, count in (("workers", 0), ("threads", 1))
        for row in measured(tmp_path / unit, work, [name for name in takers if PEERS[name].unit == unit], count)
    ]
    assert [row.name for row in rows if row.why] == []
    assert {row.name for row in rows} == set(takers)
    assert all(row.verified for row in rows if row.peer.delivers)
    assert all(len(row.outcomes) == 2 for row in rows)
    text = markdown(rows, None)
    assert all(row.peer.title in text for row in rows)
    assert "not equal work" not in text


def test_a_peer_that_is_not_installed_is_a_line_that_says_so(tmp_path: Path) -> None:
    rows = measured(tmp_path, TINY, ["spdl"], 1)
    assert "- SPDL: not installed: python -m bench peers spdl" in markdown(rows, None)


def test_peers_of_the_project_need_no_environment(tmp_path: Path) -> None:
    assert install(HERE, tmp_path / "none") == {}
    assert not (tmp_path / "none").exists()


@pytest.fixture
def reference(tmp_path: Path) -> tuple[Pixels, Work]:
    write_pixels(tmp_path, TINY)
    return read_pixels(tmp_path, TINY)


def crops(pixels: Pixels, work: Work, step: int | None = None) -> npt.NDArray[np.float32]:
    """A batch as it should be; `step` mirrors all or none."""
    rng = np.random.default_rng(1)
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (work.mean, work.std))
    found = []
    for n in range(work.batch):
        y, x = rng.integers(17), rng.integers(9)
        cut = pixels[n, :, y : y + 32, x : x + 32][:, :, :: step or (1, -1)[n % 2]]
        found.append((cut - mean) / std)
    return np.stack(found).astype(np.float32)


WRONG: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.generic]]] = {
    "another dtype": lambda batch: batch.astype(np.float64),
    "fewer images": lambda batch: batch[:-1],
    "not normalised": lambda batch: batch * 2,
    "a pixel that is another": lambda batch: np.where(batch == batch.max(), batch.min(), batch),
    "one image again and again": lambda batch: np.repeat(batch[:1], len(batch), axis=0),
    "turned": lambda batch: batch.swapaxes(2, 3).copy(),
}


@pytest.mark.parametrize("y", [1, -1])
def test_a_right_batch_is_found_in_the_reference(tmp_path: Path, reference: tuple[Pixels, Work], y: int) -> None:
    np.save(tmp_path / "batch.npy", crops(*reference)[:, :, ::y])  # ours are mirrored along y too
    verify(tmp_path / "batch.npy", *reference)


@pytest.mark.parametrize("fault", WRONG)
def test_a_batch_that_is_something_else_is_refused(tmp_path: Path, reference: tuple[Pixels, Work], fault: str) -> None:
    np.save(tmp_path / "batch.npy", WRONG[fault](crops(*reference)))
    with pytest.raises(UnequalWork):
        verify(tmp_path / "batch.npy", *reference)


def test_a_batch_without_mirrored_images_is_refused(tmp_path: Path) -> None:
    work = replace(TINY, samples=32, batch=32)
    write_pixels(tmp_path, work)
    pixels, work = read_pixels(tmp_path, work)
    np.save(tmp_path / "batch.npy", crops(pixels, work, step=1))
    with pytest.raises(UnequalWork, match="never mirrored"):
        verify(tmp_path / "batch.npy", pixels, work)


def row(name: str, rates: list[float], **more: object) -> Row:
    """Batches per second, of each round."""
    windows = [Window(100, 100 / rate, 10.0, 0.0) for rate in rates]
    found = [Outcome(TINY.deliverable, "torch.float32", 0.1, w, w, w, 100.0, 50.0) for w in windows]
    return replace(Row(TINY, name, 1, found, verified=True), **more)  # type: ignore[arg-type]


def test_a_ratio_is_of_turns_in_the_same_round() -> None:
    found = ratio(row("native", [100, 10, 100]), row("webdataset", [10, 1, 5]))
    assert found == spread([10, 10, 20])


@pytest.mark.parametrize(
    "other",
    [
        row("webdataset", [1, 1], verified=False),
        row("webdataset", [1, 1], work=replace(TINY, crop=16)),
        row("webdataset", [1]),
        row("webdataset", []),
    ],
    ids=["not verified", "another work", "fewer rounds", "no rounds"],
)
def test_no_ratio_is_made_of_unequal_work(other: Row) -> None:
    with pytest.raises(UnequalWork):
        ratio(row("native", [1, 1]), other)


def test_aims_are_held_against_what_was_measured() -> None:
    rows = [row("native", [100, 100]), row("webdataset", [2, 2]), row("memmap", [60, 60]), row("kernel", [110, 110])]
    found = {aim.text.partition(" (")[0]: aim.reached for aim in aims(rows, None)}
    assert found["fields: ≥ 30 × webdataset"]
    assert not found["fields: ≥ 2 × torch + np.memmap"]
    assert found["fields: ≥ 80 % of the bare kernel on 1 threads"]


def test_turns_run_in_processes_of_their_own_and_say_what_went_wrong(
    tmp_path: Path, reference: tuple[Pixels, Work]
) -> None:
    python, work = Path(sys.executable), TINY
    with Interpreters(tmp_path / "log", frozenset(os.sched_getaffinity(0))) as interpreters:
        (tmp_path / "tiff").mkdir()
        assert interpreters.ask(python, Request("tiff", str(tmp_path), "tiff", work)) is None
        found = interpreters.ask(python, Request("tiff", str(tmp_path), "tiff", work, 1, {}, 0.05, 0.05))
        assert found is not None
        assert found.shape == work.deliverable
        assert found.summed.batches >= 4
        assert 0 < found.own_mb < found.peak_mb
        with pytest.raises(TurnError, match="No module named"):
            interpreters.ask(python, Request("nobody", str(tmp_path), "tiff", work, 0))


def test_rows_are_written_as_json() -> None:
    found = json.loads(json.dumps(loader.as_json(row("native", [1, 2]))))
    assert [outcome["summed"]["batches"] for outcome in found["outcomes"]] == [100, 100]


def test_start_up_opens_real_tables_and_verified_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start_up, "OF_SHARD", 100)
    monkeypatch.setattr(start_up, "_RUNS", 1)
    found = start_up.measure(tmp_path, 300)
    assert found.samples == 300
    assert 0 < found.open_s <= found.first_batch_s
    assert found.imported_mb <= found.peak_mb
