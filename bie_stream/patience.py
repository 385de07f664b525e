"""How long an answer over a network is waited for, and what is asked again: no wait without an end.

try     1        2        3        4
limit   15 s     30 s     60 s     120 s      for what is slow and not dead
pause   0..1 s   0..2 s   0..4 s              at random, so that many clients do not come back together
"""

import errno
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")

_jitter = random.Random()  # its own: the order of samples hangs on no generator, nor does a user's on this one
_LATER = (408, 425, 429)  # of HTTP: timed out, too early, too many requests
_LASTING = (
    FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, TypeError, LookupError,
    AttributeError, ImportError, NotImplementedError,
)  # fmt: skip
_LASTING_CODES = {errno.EINVAL, errno.ENOSYS, getattr(errno, "EREMCHG", None)}  # s3fs: answers 400, 416; 501; 301, 307


@dataclass(frozen=True)
class Patience:
    """How long an answer is waited for, in seconds.

    Attributes:
        tries: how often it is asked for.
        limit_s: of the first try; of each later one twice that of the one before.
        pause_s: at most, after the first try; after each later one twice that.
    """

    tries: int = 4
    limit_s: float = 15.0
    pause_s: float = 1.0

    @property
    def longest_s(self) -> float:
        """All tries and pauses together."""
        return (2**self.tries - 1) * self.limit_s + (2 ** (self.tries - 1) - 1) * self.pause_s


def again(
    ask: Callable[[float], Answer], patience: Patience, failed: Callable[[], None] = lambda: None
) -> Answer:  # fmt: skip
    """The answer, asked for again while it fails for a reason that passes.

    Args:
        ask: given the limit of this try, in seconds.
        failed: called before each new try.

    Raises:
        Exception: of the last try.
    """
    for number in range(patience.tries - 1):
        try:
            return ask(patience.limit_s * 2**number)
        except Exception as error:
            if not passes(error):
                raise
        failed()
        time.sleep(_jitter.uniform(0, patience.pause_s * 2**number))
    return ask(patience.limit_s * 2 ** (patience.tries - 1))


def passes(error: BaseException) -> bool:
    """Whether the same question may be answered another time. Errors that we do not know are thought to."""
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in _LATER
    return not isinstance(error, _LASTING) and getattr(error, "errno", None) not in _LASTING_CODES


def http_status(error: BaseException) -> int | None:
    """Of the answer that became this error of aiohttp or gcsfs."""
    found = (getattr(error, name, None) for name in ("status", "code"))
    return next((status for status in found if isinstance(status, int)), None)


def aside(ask: Callable[[], Answer]) -> "Future[Answer]":
    """Asks in a thread of its own, which neither the asker nor the end of the program has to wait for."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, name="bie_stream-aside", daemon=True).start()
    return answer


def said(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
