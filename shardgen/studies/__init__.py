"""Studies that can be built by name: one file each, with SUMMARY and fetch(raw folder) → Archive."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from shardgen.archive import Archive
from shardgen.studies import demo


class Study(Protocol):
    """What a study's file offers."""

    @property
    def SUMMARY(self) -> str: ...  # noqa: N802 - a constant of the module

    @property
    def fetch(self) -> Callable[[Path], Archive]: ...


STUDIES: Mapping[str, Study] = {"demo": demo}
