"""A step of each model beside that of the plainest implementation of the same network, which must do equal work.

    weights of ours → the plain one → same loss, gradients and statistics? → turns, one after the other → ratios

A step is forward, loss, backward and AdamW; of the encoder alone, forward and backward.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from bench.plain import agnostic_mae, mae, vit, vqvae
from bench.plain.autoencoder import AE
from bench.plain.mae import MAE, Transformer
from bench.plain.vae import VAE
from bench.plain.vqvae import VQVAE
from bench.verify import UnequalWork
from bie_stream.errors import ConfigError, nearest
from train.config import AEConfig, AnyModelConfig, EMACodesConfig, MAEConfig, VAEConfig, VQVAEConfig
from train.models import Model, build
from train.models.mae import SIZES

TOLERANCE = 1e-4  # relative, for another order of operations in float32
_SEED = 0
_PROOF_IMAGES, _PROOF_DRAWS = 2, 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One network on images of one size.

    Attributes:
        plain: images → loss, as `bench.plain` has it.
        names: beginnings of names in the plain one → in ours, where they differ.
        encoder_only: the encoder on all tokens, without an optimiser.
    """

    title: str
    config: AnyModelConfig
    plain: Callable[["Case"], nn.Module]
    names: Mapping[str, str]
    channels: int = 4
    crop: int = 128
    batch: int = 16
    encoder_only: bool = False

    def images(self) -> Tensor:
        """[B, C, crop, crop], as a loader gives them."""
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randn(self.batch, self.channels, self.crop, self.crop, generator=generator)


@dataclass(frozen=True)
class Proof:
    """That two implementations do equal work, from the same weights, images and draws.

    Attributes:
        parameters: numbers that learn, the same of both.
        loss: of both.
        loss_difference: relative.
        gradient_difference: |a − b| / |a| of the parameter where it is largest.
        buffer_difference: the same of running statistics and codebooks, after the step.
    """

    parameters: int
    loss: float
    loss_difference: float
    gradient_difference: float
    buffer_difference: float


class Step(NamedTuple):
    """Seconds of one step, as the mean of a turn.

    Attributes:
        cpu_s: of all threads; on one thread a measure that others on the machine hardly change.
    """

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Row:
    """What was measured, of each round; or why nothing may be compared."""

    name: str
    case: Case
    proof: Proof | None
    ours: tuple[Step, ...] = ()
    plain: tuple[Step, ...] = ()
    why: str = ""


class Ours(nn.Module):
    """Images → loss, fed as `train.engine.Engine.step` feeds a model."""

    def __init__(self, model: Model, encoder_only: bool) -> None:
        super().__init__()
        self.model, self.encoder_only = model, encoder_only

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        if self.encoder_only:
            return self.model.embed(images).square().mean()
        return torch.stack(list(self.model(images, step=0).losses.values())).sum()


def _ae(case: Case) -> nn.Module:
    assert isinstance(case.config, AEConfig)
    return AE(case.channels, case.config.latent_dim)


def _vae(case: Case) -> nn.Module:
    assert isinstance(case.config, VAEConfig)
    return VAE(case.channels, case.config.latent_dim, case.config.beta)


def _vqvae(case: Case) -> nn.Module:
    assert isinstance(case.config, VQVAEConfig)
    book = case.config.quantiser
    assert isinstance(book, EMACodesConfig)
    return VQVAE(case.channels, case.config.latent_dim, book.codes, book.decay, book.commitment)


def _mae(case: Case) -> nn.Module:
    config = case.config
    assert isinstance(config, MAEConfig)
    kind = agnostic_mae.AgnosticMAE if config.channels == "agnostic" else MAE
    decoder = Transformer(config.decoder_width, config.decoder_depth, config.decoder_heads)
    encoder = Transformer(*SIZES[config.size])
    return kind(case.crop, case.channels, config.patch, encoder, decoder, config.mask_ratio)


def _vit(case: Case) -> nn.Module:
    assert isinstance(case.config, MAEConfig)
    return vit.ViT(f"vit_{case.config.size}_patch{case.config.patch}_224", case.crop, case.channels)


CASES: Mapping[str, Case] = {
    "ae": Case("AE, ResNet-18", AEConfig(), _ae, {}),
    "vae": Case("VAE, ResNet-18", VAEConfig(), _vae, {}),
    "vqvae": Case("VQ-VAE, ResNet-18", VQVAEConfig(), _vqvae, vqvae.OURS),
    "mae": Case("MAE, ViT-S/16", MAEConfig(), _mae, mae.OURS),
    "mae-agnostic": Case(
        "MAE of any channels, ViT-S/16", MAEConfig(channels="agnostic"), _mae, agnostic_mae.OURS, batch=8
    ),
    "mae-encoder": Case("ViT-S/16 alone, all tokens", MAEConfig(), _vit, vit.OURS, encoder_only=True),
}  # fmt: skip


def chosen(names: Collection[str], quick: bool = False) -> dict[str, Case]:
    """Cases by name; `quick`: on two small images, vision transformers tiny.

    Raises:
        ConfigError: there is no such case.
    """
    for name in names:
        if name not in CASES:
            raise ConfigError(f"--model {name!r} is not measured; {nearest(name, list(CASES))}")
    return {name: _quick(CASES[name]) if quick else CASES[name] for name in names}


def _quick(case: Case) -> Case:
    if not isinstance(case.config, MAEConfig):
        return replace(case, crop=64, batch=2)
    tiny = {"size": "tiny", "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2}
    title, config = case.title.replace("ViT-S", "ViT-Ti"), case.config.model_copy(update=tiny)
    return replace(case, title=title, config=config, crop=64, batch=2)


def on_threads(count: int | None) -> dict[str, object]:
    """Has torch use that many, by default as many as `train.engine.start` does; says on what models run."""
    torch.set_num_threads(count or os.cpu_count() or 1)
    return {"threads": torch.get_num_threads(), "torch": torch.__version__, "timm": timm.__version__}


def run(cases: Mapping[str, Case], repeats: int, seconds: float, say: Say) -> Iterator[Row]:
    """Proves equal work, then measures; what does not do equal work is not measured."""
    for name, case in cases.items():
        ours, plain = contenders(case)
        try:
            proof = prove(ours, plain, case)
        except UnequalWork as error:
            say(f"{name}: {error}")
            yield Row(name, case, None, why=str(error))
            continue
        own, other = _rounds(case, [ours, plain], repeats, seconds)
        best, best_other = min(own), min(other)
        say(f"{name}: {best.wall_s * 1e3:,.1f} ms, plain {best_other.wall_s * 1e3:,.1f} ms a step at best")
        yield Row(name, case, proof, own, other)


def contenders(case: Case) -> tuple[nn.Module, nn.Module]:
    """Ours and the plain one, in training, with weights of their own."""
    torch.manual_seed(_SEED)
    return Ours(build(case.config, case.channels), case.encoder_only).train(), case.plain(case).train()


def prove(ours: nn.Module, plain: nn.Module, case: Case) -> Proof:
    """Copies our weights and statistics into the plain one, and holds a pass of each to the other's.

    Rounding takes a ReLU at 0 one way in one and the other way in the other, now and then, and one of them is a
    thousandth of a gradient. So there are few images, and other ones where they differ: by chance none are alike.

    Raises:
        UnequalWork: other parameters, another loss, other gradients or statistics.
    """
    draws = torch.split(replace(case, batch=_PROOF_DRAWS * _PROOF_IMAGES).images(), _PROOF_IMAGES)
    _unsettle(ours, draws[0])
    pairs = _pairs(ours, plain, case.names)
    for images in draws:
        with torch.no_grad():
            for own, other in pairs.values():
                other.copy_(own.reshape(other.shape))
        loss, other_loss = _backward(ours, images), _backward(plain, images)
        _refuse_more(ours, pairs)
        of_loss = abs(other_loss - loss) / abs(loss)
        of_gradients = {name: _difference(a.grad, b.grad) for name, (a, b) in pairs.items() if b.requires_grad}
        of_buffers = {name: _difference(a, b) for name, (a, b) in pairs.items() if not b.requires_grad}
        differences = {"loss": of_loss} | {f"gradient of {name}": of for name, of in of_gradients.items()} | of_buffers
        unlike = {name: of for name, of in differences.items() if not of <= TOLERANCE}
        if not unlike:
            parameters = sum(weight.numel() for _, weight in pairs.values() if weight.requires_grad)
            return Proof(parameters, loss, of_loss, max(of_gradients.values()), max(of_buffers.values(), default=0.0))
    name, of = next(iter(unlike.items()))
    raise UnequalWork(f"{name} differs by {of:.1e} of itself; at most {TOLERANCE:.0e} may be")


def _pairs(ours: nn.Module, plain: nn.Module, names: Mapping[str, str]) -> dict[str, tuple[Tensor, Tensor]]:
    """By their name in the plain one: weights that learn and statistics of ours, and of the plain one."""
    owns, found = ours.state_dict(keep_vars=True), {}
    for name, other in plain.state_dict(keep_vars=True).items():
        if isinstance(other, nn.Parameter) and not other.requires_grad:
            continue  # a table
        start = next((start for start in names if name.startswith(start)), "")
        own = owns.get(f"model.{names.get(start, '')}{name.removeprefix(start)}")
        if own is None or own.numel() != other.numel():
            raise UnequalWork(f"the plain one has {name} {list(other.shape)}, and ours has nothing like it")
        found[name] = own, other
    return found


def _refuse_more(ours: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Each weight of ours that has a gradient must have been copied."""
    copied = {id(own) for own, _ in pairs.values()}
    for name, weight in ours.named_parameters():
        if weight.grad is not None and id(weight) not in copied:
            raise UnequalWork(f"ours has {name} {list(weight.shape)}, and the plain one has nothing like it")


@torch.no_grad()
def _unsettle(ours: nn.Module, images: Tensor) -> None:
    """Moves every number off what it begins with: no weight is 0, where its place would not matter, no codes alike."""
    ours(images)  # a codebook begins with the first batch
    torch.manual_seed(_SEED)
    for tensor in ours.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + 0.1 * torch.randn_like(tensor)).add_(0.01 * torch.randn_like(tensor))


def _backward(module: nn.Module, images: Tensor) -> float:
    """One pass, by draws that are the same for all: the loss; gradients stay."""
    torch.manual_seed(_SEED)
    module.zero_grad()
    loss: Tensor = module(images)
    torch.autograd.backward(loss)
    return float(loss.detach())


def _difference(own: Tensor | None, other: Tensor | None) -> float:
    """|a − b| / |a|; not a number where one has none."""
    if own is None or other is None:
        return math.nan
    own, other = own.detach().double().flatten(), other.detach().double().flatten()
    return float((own - other).norm() / own.norm().clamp(min=torch.finfo(torch.float32).tiny))


def _rounds(case: Case, contenders: Sequence[nn.Module], repeats: int, seconds: float) -> list[tuple[Step, ...]]:
    """Of each contender a step of each round; who begins changes from round to round."""
    images = case.images()
    steps = [_step(contender, images, not case.encoder_only) for contender in contenders]
    for step in steps:
        step()
    found: list[list[Step]] = [[] for _ in steps]
    for number in range(repeats):
        for which in range(len(steps))[:: -1 if number % 2 else 1]:
            found[which].append(_turn(steps[which], seconds))
    return [tuple(turns) for turns in found]


def _step(module: nn.Module, images: Tensor, update: bool) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        loss: Tensor = module(images)
        torch.autograd.backward(loss)
        if update:
            optimiser.step()

    return step


def _turn(step: Callable[[], None], seconds: float) -> Step:
    """As many steps as it takes, and one at least."""
    start, cpu, steps = time.perf_counter(), time.process_time(), 0
    while steps == 0 or time.perf_counter() - start < seconds:
        step()
        steps += 1
    return Step((time.perf_counter() - start) / steps, (time.process_time() - cpu) / steps)
