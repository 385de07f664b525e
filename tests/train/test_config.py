from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from bie_stream.augment import Augment
from bie_stream.errors import ConfigError
from train.config import AugmentConfig, EMACodesConfig, VQVAEConfig, load_config

MINIMAL = {"run_dir": "runs/x", "data": {"path": "shards/x"}, "model": {"kind": "vqvae"}, "training": {"steps": 100}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.bach_size=3", "unknown key data.bach_size; did you mean 'batch_size'?"),
        ("model.quantiser.code=3", "unknown key model.quantiser.code; did you mean 'codes'?"),
        ("trainig.steps=3", "unknown key trainig; did you mean 'training'?"),
        ("data.augment.flp=true", "unknown key data.augment.flp; did you mean 'flip'?"),
        ("data.augment.rotate=10", "unknown key data.augment.rotate; did you mean 'rotate_deg'?"),
        ("data.augment.rotate_deg=270", "data.augment: rotate_deg 270 should be between 0, which is off, and 180"),
        ("data.augment.noise=.nan", "data.augment: noise nan should be between 0, which is off, and 10"),
        ("data.augment.scale=[0.2, 1]", "data.augment: scale [0.2, 1] should be [least, greatest] between 0.5 and 2"),
        ("data.augment.scale=2", "data.augment.scale: Input should be a valid tuple, given 2"),
        ("training.steps=many", "training.steps: should be a number of steps, or epochs as '5 epochs', given 'many'"),
        ("optimiser.name=adamwx", "timm has no optimiser 'adamwx'; did you mean 'adamw'?"),
        ("data.crop=100", "data.crop 100 must be a multiple of model.stride 16"),
        ("training.checkpoint_every=30", "checkpoint_every 30 must be a multiple of log_every 25"),
        ("model.kind=gan", "does not match any of the expected tags"),
        ("model={kind: mae, mask: 0.5}", "unknown key model.mask; did you mean 'mask_ratio'?"),
        ("model={kind: mae, decoder_heads: 7}", "decoder_width 256 is no multiple of decoder_heads 7"),
        ("training", "should look like training.steps=100"),
    ],
)
def test_a_wrong_key_or_value_is_refused_and_told_in_one_line(file: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_wins_over_the_file_and_is_read_as_yaml(file: Path) -> None:
    config = load_config(file, ["model.quantiser.codes=64", "optimiser.lr=3e-4", "data.channels=[DNA, Actin]"])
    assert isinstance(config.model, VQVAEConfig)
    assert config.model.quantiser == EMACodesConfig(codes=64)
    assert config.optimiser.lr == 3e-4
    assert config.data.channels == ("DNA", "Actin")


def test_augmentation_is_configured_as_the_library_has_it(file: Path) -> None:
    assert Augment(**load_config(file).data.augment.model_dump()) == Augment()
    config = load_config(file, ["data.augment.scale=[0.8, 1.25]", "data.augment.blur_px=2"])
    expected = Augment(scale=(0.8, 1.25), blur_px=2.0)
    assert Augment(**config.data.augment.model_dump()) == expected
    assert set(AugmentConfig.model_fields) == {field.name for field in fields(Augment)}


def test_the_resolved_configuration_reads_back_as_itself(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["data.augment.scale=[0.8, 1.25]"])
    again = tmp_path / "again.yaml"
    again.write_text(config.yaml())
    assert load_config(again) == config


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "train" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_configuration_that_we_ship_is_valid(path: Path) -> None:
    load_config(path)
