"""`python -m bench.codecs DATA > bench/results/codecs/README.md`: every codec on real images, on one core.

DATA holds `idr0036_hoechst/images` and `bbbc013_fkhr_plate/images`.
"""

import datetime
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tifffile

from bie_stream.codecs import Pixels
from shardgen.codec_choice import MIN_DECODE_MB_S, MIN_SAVING, decide, measure

PACKAGES = ("numpy", "tifffile", "imagecodecs", "blosc2")


def stacks(paths: list[Path], size: int) -> list[Pixels]:
    """Samples [size, Y, X] of as many files; what is left over is not used."""
    planes = [tifffile.imread(path) for path in paths]
    return [np.stack(planes[i : i + size]) for i in range(0, len(planes) - size + 1, size)]


def samples(data: Path) -> dict[str, list[Pixels]]:
    """The sets that are measured, by name."""
    nuclei = sorted((data / "idr0036_hoechst" / "images").glob("*.tif"))
    plate = data / "bbbc013_fkhr_plate" / "images"
    fields = [[plate / path.name.replace("Channel1", f"Channel{c}") for c in (1, 2)]
              for path in sorted(plate.glob("Channel1-*.tif"))]  # fmt: skip
    wells = [field for pair in fields for field in stacks(pair, 2)]
    return {
        "idr0036, Hoechst": stacks(nuclei, 1),
        "idr0036, 5 fields as channels": stacks(nuclei, 5),
        "idr0036, tiles of 256": [cut for image in stacks(nuclei, 1) for cut in tiles(image, 256)][:300],
        "BBBC013, FKHR-GFP and DNA": wells,
    }


def tiles(image: Pixels, side: int) -> list[Pixels]:
    """Squares of an image [C, Y, X], from its top left."""
    _, height, width = image.shape
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    return [image[:, y : y + side, x : x + side] for y, x in corners]


def processor() -> str:
    """The model as Linux names it, or what the platform says."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main(data: Path) -> None:
    """Prints the report."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print("# Codecs on real images\n\nMade by `python -m bench.codecs DATA`, in one run, on", datetime.date.today())
    print(f"\n{processor()}, one thread, {versions}, Python {platform.python_version()}.")
    print(
        "\nMB/s are 10⁶ bytes of pixels per second of CPU time; decoding has one copy of the pixels in it, the best of"
    )
    print(
        "three. Ratio: bytes of pixels per byte of payload. Data: see the README of each set; lossless, all of them.\n"
    )
    print("| images | sample | codec | ratio | encode MB/s | decode MB/s |\n|---|---|---|--:|--:|--:|")
    sentences = []
    for name, images in samples(data).items():
        table = measure(images)
        shape = " × ".join(map(str, images[0].shape))
        for m in table:
            row = f"{m.codec} | {m.ratio:.2f} | {m.encode_mb_s:.0f} | {m.decode_mb_s:.0f}"
            print(f"| {name} ({len(images)}) | {shape} {images[0].dtype} | {row} |", flush=True)
        sentences.append(f"- {name}: {decide(table).why}.")
    print(f"\nWhat the rule chooses (at least {MIN_DECODE_MB_S} MB/s, at least {MIN_SAVING:.0%} saved):\n")
    print("\n".join(sentences))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
