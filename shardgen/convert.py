"""Pixels of one field → samples."""

from collections.abc import Iterator
from typing import Any, Literal

from bie_stream.codecs import Pixels
from shardgen.archive import Label
from shardgen.cut import around, binned, is_background
from shardgen.plan import Plan, Planned

LeftOut = Literal["edge", "background"]  # an object too near to the edge of its field; see `Options.min_signal`
Sample = tuple[Pixels, dict[str, Any]]


def samples(plan: Plan, planned: Planned, pixels: Pixels) -> Iterator[Sample | LeftOut]:
    """Pixels [C, Y, X] and table row of each sample of a field whose pixels [C, Y, X] these are, or why it is none."""
    pixels = binned(pixels, plan.options.bin)
    height, width = plan.tile_shape
    for corner, number, labels in _cuts(plan, planned):
        if corner is None:
            yield "edge"
            continue
        top, left = corner
        sample = pixels[:, top : top + height, left : left + width]
        if is_background(sample, plan.levels):
            yield "background"
        else:
            yield sample, _row(plan, planned, top, left, number, labels)


def _cuts(plan: Plan, planned: Planned) -> Iterator[tuple[tuple[int, int] | None, int | None, dict[str, Label]]]:
    """Top left corner, object's number and object's labels of each sample; no corner where it leaves the field."""
    yield from ((corner, None, {}) for corner in plan.tiles)
    if planned.objects is None:
        return
    objects = planned.objects
    corners, inside = around(objects.binned(plan.options.bin), plan.tile_shape, plan.kept_shape)
    for i, number in enumerate(objects.numbers.tolist()):
        corner = (int(corners[i, 0]), int(corners[i, 1])) if inside[i] else None
        yield corner, number, {name: values[i] for name, values in objects.labels.items()}


def _row(
    plan: Plan, planned: Planned, top: int, left: int, number: int | None, labels: dict[str, Label]
) -> dict[str, Any]:
    field = planned.field
    return {
        "key": plan.key(field, top, left, number),
        "shape": [len(plan.archive.channels), *plan.tile_shape],
        "plate": field.plate,
        "well": field.well,
        "field": field.field,
        "z": field.z,
        "t": field.t,
        "top": top,
        "left": left,
        "split": planned.split,
        **({} if number is None else {"object": number}),
        **({} if planned.fold is None else {"fold": planned.fold}),
        **planned.labels,
        **labels,
    }
