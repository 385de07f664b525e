"""What `python -m train export` writes, held against the model it was written from."""

import functools
import json
import re
import shutil
import socket
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from command_line import CPU, ROOT, command
from exported_runs import FAMILIES, write_run
from safetensors import safe_open

import bie_stream
from bie_stream.encoder import EncoderInfo, onnx_runtime
from bie_stream.errors import ConfigError
from bie_stream.normalise import apply, normalisation
from train.checkpoint import load_model
from train.config import Readout
from train.evaluate.embed import features_of
from train.export import export_run, load

Images = np.ndarray[Any, Any]
Runs = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="session")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A function that gives of a family a run, and what was exported of it."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def run_and_export(family: str) -> tuple[Path, Path]:
        run, out = write_run(folder / family / "run", tiny, family), folder / family / "encoder"
        export_run(run, out, "CC-BY-4.0")
        return run, out

    return run_and_export


def pixels(batch: int, channels: int, height: int, width: int) -> Images:
    """As a microscope gives them: the levels of the tiny plate, a corner that is empty, the brightest value."""
    random = np.random.default_rng(height)
    images = random.gamma(2.0, 300.0, (batch, channels, height, width)).clip(0, 65535).astype(np.uint16)
    images[0, 0, : height // 2] = 100
    images[-1, -1, 0, 0] = 65535
    return images


def expected(run: Path, images: Images) -> Images:
    """The model's embedding of pixels that are normalised as the definition has it."""
    model, config, info = load_model(run)
    kind = "none" if config.data.normalise == "plate" else config.data.normalise  # by plate the graph does nothing
    by = normalisation(kind, info.channels, info.statistics)
    ready = np.empty(images.shape, np.float32)
    for image, out in zip(images, ready, strict=True):
        apply(image, by, out)
    with torch.inference_mode():
        return model.embed(torch.from_numpy(ready), config.readout).numpy()


def graphs(out: Path, *inputs: Images) -> dict[str, Images]:
    given = [each.astype(np.float32) for each in inputs]
    names = ["pixels", "statistics"][: len(given)]
    session = onnx_runtime().InferenceSession(out / "encoder.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(out / "encoder.pt2").module()
    with torch.inference_mode():
        found = program(*map(torch.from_numpy, given)).numpy()
    return {"encoder.pt2": found, "encoder.onnx": session.run(None, dict(zip(names, given, strict=True)))[0]}


def assert_close(found: Images, reference: Images, what: str) -> None:
    assert found.shape == reference.shape, what
    assert found.dtype == np.float32, what
    np.testing.assert_allclose(found, reference, rtol=0, atol=1e-4 * np.abs(reference).max(), err_msg=what)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_of_raw_pixels_equal_the_model_for_any_batch_and_size(runs: Runs, family: str) -> None:
    run, out = runs(family)
    _, info = load(out)
    statistics = np.array([(each.mean, each.std) for each in info.statistics], np.float32)
    embeddings = []
    for shape in ((1, 64, 64), (3, 16, 40), (2, 128, 16)):
        images = pixels(shape[0], 3, *shape[1:])
        reference = expected(run, images)
        for name, found in graphs(out, images, *[statistics] * info.takes_statistics).items():
            assert_close(found, reference, f"{name} {shape}")
        embeddings.append(reference[0] / np.abs(reference).max())
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3, "embeddings that are all alike would show nothing"


@pytest.mark.parametrize("family", ["expanded", "any channels"])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_of_models_of_any_channels_the_graphs_take_any_number_of_them(runs: Runs, family: str, channels: int) -> None:
    model, info = load(runs(family)[1])
    images = pixels(2, channels, 32, 48)
    mean = images.mean(axis=(0, 2, 3), dtype=np.float64)
    std = images.std(axis=(0, 2, 3), dtype=np.float64)
    ready = (images - mean[:, None, None]) / std[:, None, None]
    if info.normalise == "image":
        ready = ready - ready.mean(axis=(2, 3), keepdims=True)
        ready = ready / np.sqrt(ready.var(axis=(2, 3), keepdims=True) + 1e-4)
    with torch.inference_mode():
        readout = Readout.model_validate({"layer": info.layer, "pooling": info.pooling})
        reference = model.embed(torch.from_numpy(ready.astype(np.float32)), readout).numpy()
    for name, found in graphs(runs(family)[1], images, np.stack([mean, std], axis=1)).items():
        assert_close(found, reference, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_over_a_dataset_gives_what_embed_gives(runs: Runs, tiny: Path, family: str) -> None:
    run, out = runs(family)
    model, config, info = load_model(run)
    dataset = bie_stream.open(tiny, channels=info.channels)
    found = bie_stream.Encoder(out).embed(dataset, batch_size=8)
    assert len(found) == 20
    assert_close(found, features_of(dataset, model, config, info, config.readout), family)


def test_weights_and_config_rebuild_the_same_model_in_another_process(runs: Runs) -> None:
    run, out = runs("vqvae")
    script = """
import json, sys, torch
from pathlib import Path
from train.config import Readout
from train.export import load
model, info = load(Path(sys.argv[1]))
images = torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32) / 3000
with torch.inference_mode():
    output = model(images)
print(json.dumps([output.embedding.tolist(), output.reconstruction.tolist(), output.codes.tolist(), info.step]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=ROOT, env=CPU, capture_output=True, text=True, check=True
    )
    embedding, reconstruction, codes, step = json.loads(done.stdout)
    model = load_model(run)[0]
    images = torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32) / 3000
    with torch.inference_mode():
        output = model(images)
    assert output.codes is not None
    assert (output.embedding.tolist(), output.codes.tolist(), step) == (embedding, codes, 42)
    assert output.reconstruction.tolist() == reconstruction
    with safe_open(out / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(model.state_dict())


def test_graphs_say_what_they_are_and_nothing_of_the_machine_that_wrote_them(
    runs: Runs
) -> None:  # fmt: skip
    run, out = runs("vqvae")
    stored = json.loads((out / "config.json").read_text())
    assert stored["channels"] == ["DNA", "Protein", "Actin"]
    assert (stored["normalise"], stored["stride"], stored["dtype"], stored["weights_licence"]) == (
        "image", 8, "uint16", "CC-BY-4.0",
    )  # fmt: skip
    assert stored["trained"]["model"]["quantiser"]["codes"] == 16
    model = onnx.load(out / "encoder.onnx")
    metadata = {each.key: json.loads(each.value) for each in model.metadata_props}
    assert metadata == stored
    extra = {"config.json": ""}
    program = torch.export.load(out / "encoder.pt2", extra_files=extra)
    assert json.loads(extra["config.json"]) == stored
    assert not [name for name in program.state_dict if "decoder" in name or "quantiser" in name]
    inside = [model.SerializeToString()]
    with zipfile.ZipFile(out / "encoder.pt2") as archive:
        inside += [archive.read(name) for name in archive.namelist() if not name.endswith((".pt", "weight_0"))]
    inside += [(out / name).read_bytes() for name in ("config.json", "README.md", "rdf.yaml")]
    for path in (str(ROOT), str(run.parent), sys.prefix):
        assert not [each[:80] for each in inside if path.encode() in each], path


@pytest.mark.parametrize("family", ["vqvae", "vae by plate", "any channels"])
def test_the_description_is_valid_for_bioimage_io_without_a_network_and_its_test_is_met(
    runs: Runs, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import bioimageio.spec

    def offline(*_: object) -> None:
        raise AssertionError("a description on disk needs no network")

    monkeypatch.setattr(socket.socket, "connect", offline)
    out = runs(family)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        described = bioimageio.spec.load_description(out / "rdf.yaml", perform_io_checks=True)
    assert isinstance(described, bioimageio.spec.model.v0_5.ModelDescr), described.validation_summary.format()
    assert described.validation_summary.status == "valid-format"  # "passed" is for who runs its test, as below
    axes = {axis.id: axis for axis in described.inputs[0].axes}
    assert axes["channel"].channel_names == ["DNA", "Protein", "Actin"]
    assert (axes["y"].size.min, axes["x"].size.step) == (16, 8)
    assert (axes["x"].unit, axes["x"].scale) == ("micrometer", 0.65)
    assert str(described.license) == "CC-BY-4.0"
    inputs = {str(each.id): np.load(out / f"test_{each.id}.npy").astype(np.float32) for each in described.inputs}
    session = onnx_runtime().InferenceSession(out / described.weights.onnx.source.path.name)
    assert_close(session.run(None, inputs)[0], np.load(out / "test_embedding.npy"), family)


def test_the_card_has_front_matter_the_data_and_how_to_use_it(runs: Runs) -> None:
    text = (runs("vae by plate")[1] / "README.md").read_text()
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["license"] == "cc-by-4.0"
    assert matter["pipeline_tag"] == "image-feature-extraction"
    assert {"vae", "microscopy"} <= set(matter["tags"])
    assert "bie-stream, procedural plate" in text  # the citation of the data
    assert "takes pixels that are normalised already" in text
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(block.splitlines()) == 4
    compile(block, "card", "exec")


@pytest.mark.slow
def test_what_cannot_be_exported_is_told_and_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    run = runs("ae")[0]
    with pytest.raises(ConfigError, match=r"bioimage\.io.s specification refuses this encoder: license"):
        export_run(run, tmp_path / "out", "free as air")
    with pytest.raises(ConfigError, match="is no exported encoder; choose another --out"):
        export_run(run, run)
    done = command("-m", "train", "export", "--run", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no run at")
    assert not list(tmp_path.iterdir())
    assert (run / "run.json").exists()


@pytest.mark.slow
def test_the_command_writes_an_encoder_in_place_of_an_older_one(runs: Runs, tmp_path: Path) -> None:
    run, older = runs("ae")
    out = shutil.copytree(older, tmp_path / "out")
    done = command("-m", "train", "export", "--run", run, "--out", out, "--licence", "MIT")
    assert done.returncode == 0, done.stderr
    assert "encoder of ae of resnet18, 128 features" in done.stdout
    assert EncoderInfo.model_validate_json((out / "config.json").read_bytes()).weights_licence == "MIT"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no exported encoder at .*config\.json is missing"):
        load(tmp_path)
