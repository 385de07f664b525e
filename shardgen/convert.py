"""Pixels of one field → samples."""

from collections.abc import Iterator
from typing import Any

from bie_stream.codecs import Pixels
from shardgen.plan import Plan, Planned


def samples(plan: Plan, planned: Planned, pixels: Pixels) -> Iterator[tuple[Pixels, dict[str, Any]]]:
    """Pixels [C, Y, X] and table row of each sample of a field whose pixels [C, Y, X] these are."""
    field, (height, width) = planned.field, plan.tile_shape
    for top, left in plan.tiles:
        row = {
            "key": plan.key(field, top, left),
            "shape": [len(pixels), height, width],
            "plate": field.plate,
            "well": field.well,
            "field": field.field,
            "z": field.z,
            "t": field.t,
            "top": top,
            "left": left,
            "split": planned.split,
            **({} if planned.fold is None else {"fold": planned.fold}),
            **planned.labels,
        }
        yield pixels[:, top : top + height, left : left + width], row
