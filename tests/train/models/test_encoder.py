from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from bie_stream.errors import ConfigError
from train.config import AEConfig
from train.models import build
from train.models.encoder import encoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of a ResNet-18 for photographs, in a file as the hub has it."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_pretrained_weights_of_a_file_are_those_of_the_encoder_for_any_number_of_channels(
    weights: Path, channels: int
) -> None:
    torch.manual_seed(7)
    theirs = timm.create_model("resnet18").state_dict()
    ours, features = encoder(AEConfig(pretrained=weights), channels)
    assert features == 256
    found = {name: value for name, value in ours.state_dict().items() if "num_batches" not in name}
    for name, value in found.items():
        if name != "conv1.weight":
            torch.testing.assert_close(value, theirs[name])
    three = theirs["conv1.weight"]
    expected = three.sum(1, keepdim=True) if channels == 1 else three.repeat(1, 2, 1, 1)[:, :channels] * 3 / channels
    torch.testing.assert_close(found["conv1.weight"], expected)


def test_only_a_run_begins_with_them_and_the_random_baseline_does_not(weights: Path) -> None:
    config = AEConfig(pretrained=weights, latent_dim=4, decoder_width=8)
    pretrained, random = build(config, 3, fresh=False), build(config, 3)
    name = "encoder.layer1.0.conv1.weight"
    torch.manual_seed(7)
    expected = timm.create_model("resnet18").state_dict()["layer1.0.conv1.weight"]
    torch.testing.assert_close(pretrained.state_dict()[name], expected)
    assert not torch.allclose(random.state_dict()[name], expected)


def test_weights_that_cannot_be_had_are_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.pretrained: no file .*nowhere\.safetensors"):
        encoder(AEConfig(pretrained=tmp_path / "nowhere.safetensors"), 3)
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=r"model.pretrained: the weights could not be loaded") as error:
        encoder(AEConfig(pretrained=tmp_path / "broken.safetensors"), 3)
    assert "\n" not in str(error.value)
