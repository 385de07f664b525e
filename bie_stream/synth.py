"""A procedural plate whose phenotypes are known: for the demo, tests and benchmarks. Pure functions of a seed.

Three channels: DNA (nuclei), Protein (a reporter that may sit in nucleus, cytoplasm or beside the nucleus) and
Actin (cell bodies). What a phenotype changes is *where* the light is, not how much: each cell's total light in
each channel has one distribution for all phenotypes, and every well has its own staining gain, background, cell
density and focus, as on a real plate. So mean intensity tells little, and shape, size and texture tell all.

| phenotype    | against control                                                     |
|--------------|---------------------------------------------------------------------|
| control      |                                                                     |
| speckled     | chromatin gathered in foci: nuclear texture                         |
| enlarged     | nuclei of 1.8 times the area with the same DNA: size                |
| translocated | Protein in the nucleus instead of the cytoplasm: localisation       |
| perinuclear  | Protein gathered beside the nucleus: localisation                   |
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float32]

CHANNELS = ("DNA", "Protein", "Actin")
PHENOTYPES = ("control", "speckled", "enlarged", "translocated", "perinuclear")
PIXEL_SIZE_UM = 0.65

_OFFSET = 100.0  # camera, grey values
_NUCLEUS_RADIUS, _CELL_RADIUS, _BOX = 9.0, 22.0, 41  # pixels; a cell is drawn in a square of 2·_BOX + 1


@dataclass(frozen=True)
class Plate:
    """A plate of 16 x 24 wells, of which `wells_per_phenotype` x 5 are used, spread at random.

    Attributes:
        fields: fields of view in a well.
        size: side of a field in pixels.
    """

    seed: int = 0
    wells_per_phenotype: int = 12
    fields: int = 4
    size: int = 256
    name: str = "demo1"


def layout(plate: Plate) -> dict[str, str]:
    """Phenotype of each used well, in plate order."""
    used = plate.wells_per_phenotype * len(PHENOTYPES)
    if used > 16 * 24:
        raise ValueError(f"{plate.wells_per_phenotype} wells for each of {len(PHENOTYPES)} phenotypes exceed 384 wells")
    order = _generator(plate.seed, 0).permutation(np.repeat(np.arange(len(PHENOTYPES)), plate.wells_per_phenotype))
    columns = 12 if used <= 8 * 12 else 24
    return {f"{chr(65 + i // columns)}{i % columns + 1}": PHENOTYPES[phenotype] for i, phenotype in enumerate(order)}


def render(plate: Plate, well: str, phenotype: str, field: int) -> npt.NDArray[np.uint16]:
    """One field of view: [3, size, size] uint16, channels as in CHANNELS."""
    place = list(layout(plate)).index(well)
    of_well, of_field = _generator(plate.seed, 1, place), _generator(plate.seed, 2, place, field)
    gain = of_well.lognormal(0.0, 0.5, 3).astype(np.float32)
    background = of_well.uniform(20, 120, 3).astype(np.float32)
    density, blur = of_well.uniform(0.6, 1.5), of_well.uniform(0.7, 1.6)

    size, margin = plate.size, _BOX
    canvas = np.zeros((3, size + 2 * margin, size + 2 * margin), np.float32)
    cells = max(3, of_field.poisson(density * 14 * (size / 256) ** 2))
    for _ in range(cells):
        y, x = of_field.integers(margin // 2, size + 3 * margin // 2, 2)
        box = (slice(None), slice(max(y - _BOX, 0), y + _BOX + 1), slice(max(x - _BOX, 0), x + _BOX + 1))
        cell = _cell(of_field, phenotype)[:, max(_BOX - y, 0) :, max(_BOX - x, 0) :]
        canvas[box] += cell[:, : canvas[box].shape[1], : canvas[box].shape[2]]
    light = _blur(canvas, blur)[:, margin:-margin, margin:-margin] * gain[:, None, None] + background[:, None, None]
    slope = of_field.uniform(-0.15, 0.15, 2)
    ramp = np.linspace(-1, 1, size)
    light *= (1 + slope[0] * ramp[:, None] + slope[1] * ramp[None, :]).astype(np.float32)
    noisy = of_field.poisson(light) + of_field.normal(_OFFSET, 4.0, light.shape)
    return noisy.round().clip(0, 65535).astype(np.uint16)


def _cell(rng: np.random.Generator, phenotype: str) -> Float:
    """Light of one cell in its square, [3, 83, 83]."""
    grid = np.arange(-_BOX, _BOX + 1, dtype=np.float32)
    y, x = grid[:, None], grid[None, :]
    area = 1.8 if phenotype == "enlarged" else 1.0
    radius = _NUCLEUS_RADIUS * np.sqrt(area) * rng.lognormal(0, 0.08)
    nucleus = _blob(rng, y, x, radius, aspect=rng.uniform(1.0, 1.35))
    body = np.maximum(_blob(rng, y, x, _CELL_RADIUS * rng.lognormal(0, 0.1), aspect=rng.uniform(1.0, 1.6)), nucleus)
    cytoplasm = body * (1 - nucleus)
    texture = _texture(rng, 1.3)
    # Two kinds of chromatin with the same mean: a cloud, and foci.
    chromatin = np.exp(0.9 * texture) if phenotype == "speckled" else 1 + 0.15 * _texture(rng, 3.0)
    if phenotype == "translocated":
        protein = 0.45 * _unit(nucleus) + 0.55 * _unit(cytoplasm)
    elif phenotype == "perinuclear":
        angle, reach = rng.uniform(0, 2 * np.pi), radius * 1.25
        spot = np.exp(-((y - reach * np.sin(angle)) ** 2 + (x - reach * np.cos(angle)) ** 2) / (2 * 6.0**2))
        protein = 0.35 * _unit(spot * cytoplasm) + 0.5 * _unit(cytoplasm) + 0.15 * _unit(nucleus)
    else:
        protein = 0.85 * _unit(cytoplasm) + 0.15 * _unit(nucleus)
    actin = body * (1 + 0.5 * np.abs(_texture(rng, 2.0))) * (0.5 + 1.0 * (body < 0.9))
    total = rng.lognormal(np.log([150_000, 160_000, 220_000]), 0.4)
    return np.stack([_unit(nucleus * chromatin), protein, _unit(actin)]).astype(np.float32) * total[
        :, None, None
    ].astype(np.float32)


def _blob(rng: np.random.Generator, y: Float, x: Float, radius: float, aspect: float) -> Float:
    """A soft-edged, slightly irregular ellipse: 1 inside, 0 outside."""
    turn = rng.uniform(0, 2 * np.pi)
    u, v = y * np.cos(turn) + x * np.sin(turn), x * np.cos(turn) - y * np.sin(turn)
    u, v = u * np.sqrt(aspect), v / np.sqrt(aspect)
    angle = np.arctan2(u, v)
    edge = radius * (1 + sum(rng.normal(0, 0.03) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)))
    return (1 / (1 + np.exp(((np.hypot(u, v) - edge) / 0.8).clip(-30, 30)))).astype(np.float32)


def _texture(rng: np.random.Generator, scale: float) -> Float:
    """Smooth noise of mean 0 and variance 1 in the square of a cell; `scale` in pixels."""
    noise = _blur(rng.standard_normal((2 * _BOX + 1, 2 * _BOX + 1)).astype(np.float32), scale)
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def _blur(image: Float, sigma: float) -> Float:
    """Gaussian blur of the last two axes (periodic), sigma in pixels."""
    fy = np.fft.fftfreq(image.shape[-2])[:, None]
    fx = np.fft.rfftfreq(image.shape[-1])[None, :]
    low_pass = np.exp(-2 * (np.pi * sigma) ** 2 * (fy**2 + fx**2))
    return np.fft.irfft2(np.fft.rfft2(image) * low_pass, s=image.shape[-2:]).astype(np.float32)


def _unit(light: Float) -> Float:
    return light / light.sum()


def _generator(seed: int, *place: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, *place))))
