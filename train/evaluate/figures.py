"""Pictures of a report. Each writes one PNG."""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def umap_picture(features: npt.NDArray[np.float32], labels: npt.NDArray[np.str_], title: str, out: Path) -> None:
    """UMAP (McInnes et al. 2018) of standardised features, coloured by label; a fixed seed."""
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of numba and umap about their own doings
        import umap

        points = umap.UMAP(n_neighbors=min(15, len(features) - 1), random_state=0, n_jobs=1).fit_transform(
            StandardScaler().fit_transform(features)
        )
    figure, axes = plt.subplots(figsize=(6.5, 5.5), dpi=120)
    for name, colour in zip(np.unique(labels), matplotlib.color_sequences["tab10"] * 10, strict=False):
        chosen = labels == name
        axes.scatter(points[chosen, 0], points[chosen, 1], s=8, color=colour, label=name, linewidths=0, alpha=0.8)
    axes.set(xlabel="UMAP 1", ylabel="UMAP 2", title=title, xticks=[], yticks=[])
    axes.legend(markerscale=2, fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)


def reconstruction_picture(
    pairs: npt.NDArray[np.float32], channels: tuple[str, ...], rows: list[str], out: Path
) -> None:
    """Input and reconstruction side by side.

    Args:
        pairs: [B · Y, C · 2 · X] in 0..1, as `train.monitor.side_by_side` lays them out.
        rows: a caption for each of the B images.
    """
    height, width = pairs.shape
    figure, axes = plt.subplots(figsize=(2.2 * 2 * len(channels) + 1, 2.2 * len(rows) + 0.5), dpi=100)
    axes.imshow(pairs, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    names = [f"{channel}\n{kind}" for channel in channels for kind in ("input", "reconstruction")]
    axes.set_xticks((np.arange(len(names)) + 0.5) * width / len(names), names, fontsize=8)
    axes.set_yticks((np.arange(len(rows)) + 0.5) * height / len(rows), rows, fontsize=8)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    figure.tight_layout()
    figure.savefig(out)
    plt.close(figure)
