"""Exported encoders over datasets, by bie_stream alone."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import CPU, ROOT
from exported_runs import write_run

import bie_stream
from bie_stream.errors import ConfigError, DatasetError
from train.export import export_run

USE = """
import sys
sys.modules.update({name: None for name in ("train", "timm", "deepspeed", "onnx", "bioimageio", "safetensors")})
"""


@pytest.fixture(scope="session")
def exported(plate_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder for three channels by name, each image normalised on its own."""
    folder = tmp_path_factory.mktemp("exported")
    export_run(write_run(folder / "run", plate_dataset, "vqvae"), folder / "encoder")
    return folder / "encoder"


@pytest.fixture(scope="session")
def exported_for_any(plate_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported_for_any")
    export_run(write_run(folder / "run", plate_dataset, "expanded"), folder / "encoder")
    return folder / "encoder"


def test_the_lines_of_the_readme_run_without_training_code_and_report_to_nobody(
    exported: Path, plate_dataset: Path, tmp_path: Path
) -> None:
    """Without `train`, timm and what else only training needs; the encoder of the lines is one that was exported."""
    readme = (ROOT / "bie_stream" / "README.md").read_text()
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "Encoder(" in block)
    assert len(lines.strip().splitlines()) == 4
    lines = lines.replace("exported/", str(exported)).replace("shards/idr0093", str(plate_dataset))
    script = f"{USE}{lines}\nimport numpy\nnumpy.save(sys.argv[1], features)"
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "features.npy"], cwd=tmp_path, text=True, capture_output=True,
        env={**CPU, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dataset = bie_stream.open(plate_dataset)
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), bie_stream.Encoder(exported).embed(dataset))
    assert not list(tmp_path.rglob("onnxruntime.db*")), "ONNX Runtime has begun to report"


def test_embeddings_are_in_the_order_of_the_table_whatever_the_batch(exported: Path, plate_dataset: Path) -> None:
    plates = bie_stream.open(plate_dataset)
    encoder = bie_stream.Encoder(exported, device="cpu")
    whole = encoder.embed(plates)
    assert whole.shape == (10, encoder.info.features)
    assert whole.dtype == np.float32
    assert len(np.unique(whole.round(3), axis=0)) == 10
    np.testing.assert_allclose(encoder.embed(plates, batch_size=4), whole, atol=1e-5 * np.abs(whole).max())
    own = plates.select(np.arange(10) == 7)
    np.testing.assert_allclose(encoder.embed(own)[0], whole[7], atol=1e-5 * np.abs(whole).max())


def test_wrong_channels_and_sizes_are_told_with_what_to_do(
    exported: Path, plate_dataset: Path, write_dataset: Callable[..., Path]
) -> None:
    encoder = bie_stream.Encoder(exported)
    with pytest.raises(DatasetError, match=r"open with channels Actin, DNA, the encoder takes DNA, Protein, Actin, in"):
        encoder.embed(bie_stream.open(plate_dataset, channels=["Actin", "DNA"]))
    images = [np.zeros((3, 64, 64), np.uint16), np.ones((3, 64, 64), np.uint16)]
    with pytest.raises(DatasetError, match=r"no channel 'DNA', which the encoder needs; known: c0, c1, c2"):
        encoder.embed(bie_stream.open(write_dataset(images)))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([(60, 64)] * 2, r"samples of 60 x 64 pixels: .* multiples of 8, from 16; build the dataset with --tile 56"),
        ([(8, 8)] * 2, r"build the dataset with --tile 16"),
        ([(64, 64), (32, 64)], r"from 32 x 64 to 64 x 64 pixels: embed those of each size by themselves"),
    ],
)
def test_sizes_that_do_not_fit_are_told_with_what_to_do(
    exported_for_any: Path, write_dataset: Callable[..., Path], sizes: list[tuple[int, int]], said: str
) -> None:
    random = np.random.default_rng(0)
    dataset = write_dataset([random.integers(0, 999, (3, *size)).astype(np.uint16) for size in sizes])
    with pytest.raises(DatasetError, match=said):
        bie_stream.Encoder(exported_for_any).embed(bie_stream.open(dataset))


def test_of_channels_that_it_was_not_trained_with_the_numbers_are_those_of_the_dataset(
    exported_for_any: Path, write_dataset: Callable[..., Path]
) -> None:
    """Brighter by a factor and an offset, a channel's embedding is the same: its own dataset says both."""
    random = np.random.default_rng(0)
    images = [random.gamma(2.0, 100.0, (2, 32, 32)).astype(np.float32) for _ in range(3)]
    encoder = bie_stream.Encoder(exported_for_any)
    found = []
    for gain, offset in ((1, 0), (5, 200)):
        dataset = write_dataset([image * np.float32(gain) + np.float32(offset) for image in images])
        found.append(encoder.embed(bie_stream.open(dataset)))
    assert found[0].shape == (3, 2 * encoder.info.features // 3)
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())
    constant = write_dataset([np.stack([image[0], np.ones((32, 32), np.float32)]) for image in images])
    with pytest.raises(DatasetError, match="channel 'c1' has the value 1 everywhere"):
        encoder.embed(bie_stream.open(constant))


def test_what_is_no_encoder_or_no_device_is_told(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoder\.onnx is missing; `python -m train export` writes one"):
        bie_stream.Encoder(tmp_path)
    (tmp_path / "encoder.onnx").write_bytes(b"no protobuf")
    with pytest.raises(ConfigError, match="cannot be run"):
        bie_stream.Encoder(tmp_path)
    model = onnx.load(exported / "encoder.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "encoder.onnx")
    with pytest.raises(ConfigError, match="no encoder that this version can run"):
        bie_stream.Encoder(tmp_path)
    with pytest.raises(ConfigError, match="device 'cuda' needs a GPU"):
        bie_stream.Encoder(exported, device="cuda")


def test_weights_in_other_files_are_refused_wherever_they_lie(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load(exported / "encoder.onnx")
    onnx.save(model, tmp_path / "encoder.onnx", save_as_external_data=True, location="secret", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime could look for it
    with pytest.raises(ConfigError, match="cannot be run"):
        bie_stream.Encoder(tmp_path)
