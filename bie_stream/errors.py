"""What can go wrong, as a small tree.

    BieStreamError
    ├── DatasetError          a dataset that cannot be used as asked (also a ValueError)
    │   └── DatasetNotFound   nothing is there (also a FileNotFoundError)
    ├── SampleError           the bytes of one sample are not what the table promises
    ├── SourceError           an archive that cannot be turned into shards as asked (also a ValueError)
    │   └── SourceMissing     a file that it names is not there (also a FileNotFoundError)
    └── ConfigError           a configuration that cannot be run (also a ValueError)

Every message is one line for a person: what was given, what was expected, what to do next.
A command prints it after ``error:`` and exits with 1; any other exception is our own fault and shows its trace.
"""

import contextlib
import difflib
import os
import sys
from collections.abc import Iterator


class BieStreamError(Exception):
    """Base of all errors that are for the user."""


class DatasetError(BieStreamError, ValueError):
    """A dataset that cannot be used as asked."""


class DatasetNotFound(DatasetError, FileNotFoundError):
    """No dataset at that place."""


class SampleError(BieStreamError):
    """The bytes of one sample are not what the table promises."""


class SourceError(BieStreamError, ValueError):
    """An archive that cannot be turned into shards as asked."""


class SourceMissing(SourceError, FileNotFoundError):
    """A file that an archive names is not there."""


class ConfigError(BieStreamError, ValueError):
    """A configuration that cannot be run."""


def nearest(word: str, known: list[str]) -> str:
    """`word` put beside what exists, for the end of an error message."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = known if len(known) <= 20 else close or known[:20]
    return f"{hint}known: {', '.join(shown)}{', …' if len(shown) < len(known) else ''}"


def printable(text: str) -> str:
    """Text as a terminal may see it: what could command it is written out, as in `\\x1b[2J`. Names in archives hold
    whatever someone put there."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextlib.contextmanager
def one_line_errors(quiet: bool = False) -> Iterator[None]:
    """Around a command: what is for the user ends it with one line on stderr and exit code 1, without a trace.

    Args:
        quiet: no line either, where another process says it.
    """
    try:
        yield
    except BieStreamError as error:
        message = str(error)
    except BrokenPipeError:  # who reads has enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the end of Python would say it again
        raise SystemExit(1) from None
    except OSError as error:  # full disk, no permission: the user's machine, not our fault
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    else:
        return
    if not quiet:
        print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(1)
