import errno
import threading
import time

import aiohttp
import pytest
from yarl import URL

from bie_stream.patience import Patience, again, aside, passes


def _answer(status: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(URL("http://host/file"), "GET", None, URL("http://host/file"))  # type: ignore[arg-type]
    return aiohttp.ClientResponseError(request, (), status=status)


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(), ConnectionResetError(), aiohttp.ServerDisconnectedError(), aiohttp.ClientPayloadError(),
        OSError(errno.EBUSY, "SlowDown"), OSError(errno.EREMOTEIO, "InternalError"), _answer(500), _answer(503),
        _answer(429), _answer(408), RuntimeError("what nobody thought of"),
    ],
)  # fmt: skip
def test_what_passes_is_asked_again(error: Exception) -> None:
    asked = []

    def ask(limit_s: float) -> str:
        asked.append(limit_s)
        if len(asked) < 3:
            raise error
        return "answer"

    failed: list[None] = []
    patience = Patience(tries=3, limit_s=5.0, pause_s=0.0)
    assert again(ask, patience, lambda: failed.append(None)) == "answer"
    assert asked == [5.0, 10.0, 20.0]
    assert len(failed) == 2


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(), PermissionError(), ValueError(), TypeError(), ImportError(), OSError(errno.EINVAL, ""),
        _answer(404), _answer(403), _answer(416),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_asked_once(error: Exception) -> None:
    asked = []

    def ask(limit_s: float) -> None:
        asked.append(limit_s)
        raise error

    assert not passes(error)
    with pytest.raises(type(error)):
        again(ask, Patience())
    assert len(asked) == 1


def test_the_longest_wait_is_known_beforehand() -> None:
    patience, start = Patience(tries=3, limit_s=0.02, pause_s=0.05), time.monotonic()

    def ask(limit_s: float) -> None:
        time.sleep(limit_s)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        again(ask, patience)
    assert patience.longest_s == pytest.approx(7 * 0.02 + 3 * 0.05)
    assert 7 * 0.02 < time.monotonic() - start < patience.longest_s + 2
    assert Patience().longest_s < 4 * 60


def test_pauses_differ() -> None:
    """Clients that failed together do not come back together."""
    took = []
    for _ in range(8):
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            again(_late, Patience(tries=2, limit_s=0, pause_s=0.1))
        took.append(time.monotonic() - start)
    assert max(took) - min(took) > 0.02


def _late(limit_s: float) -> None:
    raise TimeoutError


def test_who_asks_aside_need_not_wait() -> None:
    let_go = threading.Event()
    answer = aside(let_go.wait)
    with pytest.raises(TimeoutError):
        answer.result(0.05)
    let_go.set()
    assert answer.result(5)
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 / 0).result(5)
