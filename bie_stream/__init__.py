"""bie-stream: shards of microscopy in, device batches out.

import bie_stream

plates = bie_stream.open("shards/demo", split="train", channels=["DNA", "Protein"])
loader = bie_stream.Loader(plates, batch_size=64, crop=128, seed=0)
for batch in loader:
    batch.images, batch.ids, batch.valid
"""

from bie_stream.augment import Augment
from bie_stream.dataset import Dataset, open  # noqa: A004 - bie_stream.open, as zarr.open
from bie_stream.errors import BieStreamError, ConfigError, DatasetError, DatasetNotFound, SampleError, SourceError

__version__ = "0.1.0"

__all__ = [
    "Augment",
    "Batch",
    "BieStreamError",
    "ConfigError",
    "Dataset",
    "DatasetError",
    "DatasetNotFound",
    "Encoder",
    "Loader",
    "SampleError",
    "SourceError",
    "open",
]


def __getattr__(name: str) -> object:
    # These bring in torch; who only opens or builds shards need not wait for it.
    if name in ("Loader", "Batch"):
        from bie_stream import loader

        return getattr(loader, name)
    if name == "Encoder":
        from bie_stream.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'bie_stream' has no attribute {name!r}")
