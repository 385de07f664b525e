"""Interpreters that contenders run in, each a process that waits for requests (`bench.turn`)."""

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.turn import Outcome, Request, read_outcome

_ROOT = Path(__file__).parents[1]
_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}


class TurnError(RuntimeError):
    """A contender that could not do what was asked; the message is the last line of its trace."""


class Interpreters:
    """Started when they are first asked, ended at the end of the `with` block. What they print goes to a file.

    Args:
        log: that file.
        cores: that all of them run on.
    """

    def __init__(self, log: Path, cores: frozenset[int]) -> None:
        self._log, self._cores = log, cores
        self._running: dict[Path, subprocess.Popen[str]] = {}
        self._stack = contextlib.ExitStack()
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._said = self._stack.enter_context(self._log.open("a"))
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for process in self._running.values():
            process.terminate()
            process.communicate()
        self._stack.close()

    def ask(self, python: Path, request: Request) -> Outcome | None:
        """What the request found; raises TurnError."""
        process = self._running.get(python) or self._start(python, request.module)
        assert process.stdin is not None
        assert process.stdout is not None
        path = self._folder / f"{next(self._numbers)}.json"
        path.write_text(json.dumps(dataclasses.asdict(request)))
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        if process.stdout.readline() == "done\n":
            return read_outcome(path.with_suffix(".outcome").read_text())
        error = path.with_suffix(".error")
        trace = error.read_text() if error.exists() else "it was killed, or took too long"
        self._said.write(trace)
        self._said.flush()
        raise TurnError(trace.strip().splitlines()[-1])

    def _start(self, python: Path, module: str) -> subprocess.Popen[str]:
        of_one = [] if python == Path(sys.executable) else [module]  # what many share is not to be in each one's memory
        self._running[python] = subprocess.Popen(
            [python, "-m", "bench.turn", *of_one], cwd=_ROOT, env={**os.environ, **_ONE_THREAD}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
            preexec_fn=lambda: os.sched_setaffinity(0, self._cores),
        )  # fmt: skip
        return self._running[python]
