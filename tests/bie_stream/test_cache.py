"""The cache alone: pieces in a folder, with several processes at it."""

import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from bie_stream.cache import MOST_BYTES, Cache, Kept, Piece, cache_folder, cache_limit, least_recent, mapped, open_cache
from bie_stream.errors import DatasetError

SIZE = 2000  # bytes of a piece in these tests
FILE = SIZE + 4


def _piece(number: int) -> Piece:
    return Piece(hashlib.sha256(b"shard").hexdigest(), number * SIZE, (number + 1) * SIZE)


def _data(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


def _fill(cache: Cache, *numbers: int) -> None:
    for number in numbers:
        cache.put(_piece(number), memoryview(_data(number)))


def _whole(cache: Cache, number: int) -> bytes | None:
    view = cache.get(_piece(number), number * SIZE, (number + 1) * SIZE)
    return None if view is None else bytes(view)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in _files(folder))


def _run(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Python code in a process of its own; `sys.argv[1:]` are the arguments."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])}
    return subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_was_put_is_got_by_whoever_looks(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert _piece(3) not in cache
    assert _whole(cache, 3) is None
    _fill(cache, 3)
    for other in (cache, Cache(tmp_path)):
        assert _piece(3) in other
        assert _whole(other, 3) == _data(3)
        part = other.get(_piece(3), 3 * SIZE + 500, 3 * SIZE + 700)
        assert part is not None
        assert part.readonly
        assert part == _data(3)[500:700]
    cache.discard(_piece(3))
    assert _whole(cache, 3) is None


@pytest.mark.parametrize("damage", ["another byte", "another checksum", "cut", "longer", "empty", "zeros"])
def test_a_damaged_piece_is_not_believed(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    _fill(Cache(tmp_path), 0, 1)
    path = tmp_path / _piece(0).sha256[:2] / _piece(0).name
    data = bytearray(path.read_bytes())
    match damage:
        case "another byte":
            data[SIZE // 2] ^= 1
        case "another checksum":
            data[-1] ^= 1
        case "cut":
            del data[-100:]
        case "longer":
            data += b"\0"
        case "empty":
            data.clear()
        case "zeros":  # what a disk may hold after the power failed
            data[:] = bytes(len(data))
    path.write_bytes(data)
    cache = Cache(tmp_path)
    assert _whole(cache, 0) is None
    assert "damaged" in caplog.text
    assert _whole(cache, 1) == _data(1)
    _fill(cache, 0)
    assert _whole(cache, 0) == _data(0)


def test_a_piece_replaced_by_a_damaged_one_is_looked_at_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    _fill(cache, 0)
    path = _files(tmp_path)[0]
    path.unlink()
    path.write_bytes(bytes(FILE))
    assert _whole(cache, 0) is None


def test_the_limit_holds_and_those_used_least_lately_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=20 * FILE)
    past = time.time() - 1000
    for number in range(60):
        _fill(cache, number)
        for path in _files(tmp_path):
            if path.stat().st_atime > past + 500:
                os.utime(path, (past + number, past))  # each was used a second after the one before
        assert _whole(cache, 0) == _data(0)  # which is used all the time
        assert _bytes(tmp_path) <= 20 * FILE
    there = [number for number in range(60) if _piece(number) in cache]
    assert there[0] == 0
    assert there[1:] == list(range(61 - len(there), 60))
    assert len(there) >= 16


def test_least_recent_are_just_as_many_as_must_go() -> None:
    kept = [Kept(str(number), 10, used) for number, used in enumerate([5.0, 1.0, 3.0, 4.0])]
    assert [file.path for file in least_recent(kept, 11)] == ["1", "2"]
    assert least_recent(kept, 0) == least_recent(kept, -100) == []
    assert len(least_recent(kept, 1000)) == 4


def test_a_piece_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=FILE - 1)
    _fill(cache, 0)
    assert _files(tmp_path) == []
    assert cache.writable


def test_a_view_outlives_its_piece_and_keeps_no_file_open(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    _fill(cache, *range(50))
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    views = [cache.get(_piece(number), number * SIZE, (number + 1) * SIZE) for number in range(50)]
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == before
    for path in _files(tmp_path):
        path.unlink()
    _fill(cache, *reversed(range(50)))
    assert [bytes(view) for view in views if view is not None] == [_data(number) for number in range(50)]


def test_a_file_that_ends_early_is_not_mapped_as_if_it_did_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234567890")
    assert mapped(tmp_path / "file", 2, 8) == b"34567890"
    with pytest.raises(OSError, match="ends at byte 10"):
        mapped(tmp_path / "file", 2, 9)


def test_files_of_others_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    others = [tmp_path / "thesis.doc", tmp_path / "ab" / "thesis.doc", tmp_path / "peers" / "lib" / _piece(0).name]
    for path in others:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(bytes(50 * FILE))
        os.utime(path, (0, 0))
    cache = Cache(tmp_path, limit=20 * FILE)
    _fill(cache, *range(60))
    assert all(path.stat().st_size == 50 * FILE for path in others)
    assert sum(_piece(number) in cache for number in range(60)) >= 16


def test_what_a_killed_process_was_writing_is_never_believed_and_goes_after_a_while(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=20 * FILE)
    _fill(cache, 0)
    folder = tmp_path / _piece(0).sha256[:2]
    left, written = (folder / f"{_piece(1).name}.{name}.partial" for name in ("abc", "def"))
    for path in (left, written):
        path.write_bytes(_data(1)[:1000])
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    assert _whole(cache, 1) is None
    _fill(cache, *range(1, 40))
    assert not left.exists()
    assert written.exists()
    assert _bytes(tmp_path) <= 20 * FILE


def test_a_folder_that_cannot_be_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING, "bie_stream"):
        for number in range(3):
            with cache.claim(_piece(number), 5):
                _fill(cache, number)
                assert _whole(cache, number) is None
    assert not cache.writable
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
def test_a_disk_that_takes_no_more_is_one_warning_and_what_is_there_is_read(tmp_path: Path) -> None:
    _fill(Cache(tmp_path), 0)
    ended = _run(
        """
        import resource, sys
        from pathlib import Path
        from bie_stream.cache import Cache
        from test_cache import _data, _fill, _files, _whole
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a longer file fails in the middle, as on a full disk
        folder = Path(sys.argv[1])
        cache = Cache(folder)
        _fill(cache, 1, 2, 3)
        assert not cache.writable
        assert [_whole(cache, number) for number in range(4)] == [_data(0), None, None, None]
        assert len(_files(folder)) == 1, _files(folder)
        """,
        tmp_path,
    )
    _, said = ended.communicate(timeout=60)
    assert ended.returncode == 0, said
    assert said.count("cannot be written") == said.count("\n") == 1


def test_a_claim_is_held_by_one_process_at_a_time_and_not_by_a_killed_one(tmp_path: Path) -> None:
    holder = _run(
        """
        import sys, time
        from pathlib import Path
        from bie_stream.cache import Cache
        from test_cache import _piece
        with Cache(Path(sys.argv[1])).claim(_piece(0), 5):
            print("held", flush=True)
            time.sleep(60)
        """,
        tmp_path,
    )
    cache = Cache(tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with cache.claim(_piece(1), 60):
        pass  # another piece is free
    start = time.monotonic()
    with cache.claim(_piece(0), 0.2):
        assert 0.2 <= time.monotonic() - start < 10  # it was waited for, and no longer than said
    threading.Timer(0.3, holder.send_signal, [signal.SIGKILL]).start()
    with cache.claim(_piece(0), 60):
        assert holder.wait(5) == -signal.SIGKILL
    holder.communicate()


def test_processes_at_once_stay_under_the_limit_and_read_no_wrong_byte(tmp_path: Path) -> None:
    limit = 40 * FILE
    code = """
        import random, sys
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from bie_stream.cache import Cache
        from test_cache import FILE, SIZE, _data, _fill, _piece, _whole
        cache, chance = Cache(Path(sys.argv[1]), 40 * FILE), random.Random(int(sys.argv[2]))
        def use(number):
            found = _whole(cache, number)
            if found is None:
                _fill(cache, number)
            assert found in (None, _data(number))
            return found is not None
        with ThreadPoolExecutor(4) as pool:
            print(sum(pool.map(use, [chance.randrange(80) for _ in range(300)])))
    """
    readers = [_run(code, tmp_path, seed) for seed in range(3)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, _most_bytes(tmp_path))
        time.sleep(0.01)
    for reader in readers:
        hits, said = reader.communicate()
        assert reader.returncode == 0, said
        assert said == ""
        assert int(hits) > 30
    assert limit // 2 < most <= limit


def _most_bytes(folder: Path) -> int:
    """Bytes of the files that can still be looked at: others are removed meanwhile."""
    total = 0
    for path in folder.glob("??/*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_folder_and_limit_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder({"BIE_STREAM_CACHE": "/fast/cache", "XDG_CACHE_HOME": "/x"}) == Path("/fast/cache")
    assert cache_folder({"XDG_CACHE_HOME": "/x"}) == Path("/x/bie-stream/shards")
    assert cache_folder({}) == Path.home() / ".cache/bie-stream/shards"
    assert cache_limit({}) is None
    assert cache_limit({"BIE_STREAM_CACHE_GB": "0.5"}) == 500_000_000
    for wrong in ("64GB", "-1", "nan", "inf", ""):
        with pytest.raises(DatasetError, match=r"BIE_STREAM_CACHE_GB is .* expected a number of GB"):
            cache_limit({"BIE_STREAM_CACHE_GB": wrong})
    monkeypatch.setenv("BIE_STREAM_CACHE", str(tmp_path))
    assert open_cache(0) is None
    with pytest.raises(DatasetError, match="cache_bytes -1: expected a number of bytes"):
        open_cache(-1)
    assert open_cache(None) is open_cache(None)
    monkeypatch.setenv("BIE_STREAM_CACHE_GB", "0")
    assert open_cache(None) is None
    assert open_cache(MOST_BYTES) is not None
