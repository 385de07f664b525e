from pathlib import Path

import pytest
import timm
import torch
from ranks import on_ranks
from torch import Tensor, nn

from train.models.norm import BatchNorm, over_global_batch

RANKS = 2


def _step(layer: nn.BatchNorm2d, images: Tensor) -> list[Tensor]:
    """A step of training: output, gradients of images, weight and bias, running mean and variance."""
    images = images.clone().requires_grad_()
    output = layer(images)
    (output.sin().mean() + (output**3).mean()).backward()
    found = [output.detach(), images.grad, layer.weight.grad, layer.bias.grad, layer.running_mean, layer.running_var]
    return [tensor for tensor in found if tensor is not None]


def _rank(rank: int, folder: str) -> None:
    images, state = torch.load(Path(folder) / "in.pt", weights_only=True)
    layer = BatchNorm(3)
    layer.load_state_dict(state)
    torch.save(_step(layer, images.chunk(RANKS)[rank]), Path(folder) / f"{rank}.pt")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_ranks_normalise_as_torch_does_in_one_process_and_give_its_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 5, 7) * 3 + torch.arange(6.0)[:, None, None, None]  # ranks see unlike images
    layer = nn.BatchNorm2d(3)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    torch.save((images, layer.state_dict()), tmp_path / "in.pt")
    output, *gradients, mean, variance = _step(layer, images)
    on_ranks(RANKS, _rank, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), output)
    # each rank's loss is the mean over its own images, and engines average the gradients of weights over ranks
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]) / RANKS, gradients[0])
    torch.testing.assert_close(sum(rank[2] for rank in ranks) / RANKS, gradients[1])
    torch.testing.assert_close(sum(rank[3] for rank in ranks) / RANKS, gradients[2])
    for rank in ranks:
        torch.testing.assert_close(rank[4], mean)
        torch.testing.assert_close(rank[5], variance)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_timm_model_computes_the_same_after_the_exchange_and_has_no_other_batch_normalisation(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, in_chans=2, pretrained=False).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    images = torch.randn(2, 2, 64, 64)
    before = [features.detach() for features in model(images)]
    exchanged = over_global_batch(model)
    for one, other in zip(before, exchanged(images), strict=True):
        torch.testing.assert_close(other, one)
    norms = [module for module in exchanged.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(type(module) is BatchNorm for module in norms)
