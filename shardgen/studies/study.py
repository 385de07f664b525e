"""What the list of studies says of one, and how it is found."""

from collections.abc import Callable
from dataclasses import dataclass

from shardgen.archive import Archive
from shardgen.request import Request


@dataclass(frozen=True)
class Study:
    """A study that can be built by name.

    Attributes:
        size: for a person, before anything is fetched.
        labels: the columns that most people will want; its tables have more.
        find: its fields, as far as the request selects them.
    """

    title: str
    licence: str
    size: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    find: Callable[[Request], Archive]
