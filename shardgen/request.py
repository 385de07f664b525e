"""What a user asks of an archive, whatever its kind."""

from dataclasses import dataclass, field
from pathlib import Path

from shardgen.endpoints import Endpoints
from shardgen.files import Files, Transfer, open_files
from shardgen.select import Selection


@dataclass(frozen=True)
class Request:
    """Everything but how samples are made of the fields.

    Attributes:
        pattern, labels, plate: see `shardgen.sources.tiff_folder` and `shardgen.labels`; only for files
            whose layout does not say it.
        study, licence, citation, pixel_size_um: what the archive does not say of itself, or says wrongly.
        objects, masks: see `shardgen.objects` and `shardgen.masks`.
        raw: folder for a raw archive that has to be written first.
    """

    pattern: str = ""
    labels: Path | None = None
    plate: str | None = None
    study: str | None = None
    licence: str | None = None
    citation: str | None = None
    pixel_size_um: float | None = None
    objects: Path | None = None
    masks: str | None = None
    selection: Selection = field(default_factory=Selection)
    endpoints: Endpoints = field(default_factory=Endpoints)
    transfer: Transfer = field(default_factory=Transfer)
    raw: Path | None = None

    def files(self, root: str) -> Files:
        """The files under a folder, a URL, or `s3://bucket/prefix`."""
        if root.startswith("s3://"):
            return open_files(f"{self.endpoints.s3}/{root.removeprefix('s3://')}", self.transfer, s3=True)
        return open_files(root, self.transfer)
