"""The whole configuration: one YAML → frozen models. What is not here cannot be set, and a misspelt key is refused."""

import math
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from bie_stream.augment import Augment
from bie_stream.errors import ConfigError, nearest
from bie_stream.normalise import Normalise


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")


def _steps(value: Any) -> Any:
    if not (isinstance(value, str) and _EPOCHS.fullmatch(value)) and not (isinstance(value, int) and value >= 0):
        raise ValueError(f"should be a number of steps, or epochs as '5 epochs', given {value!r}")
    return value


Steps = Annotated[int | str, BeforeValidator(_steps)]
"""A number of steps; in a file also '5 epochs', which `Config.in_steps` turns into one."""


class AugmentConfig(Section):
    """See `bie_stream.Augment`; all off for embedding."""

    crop_anywhere: bool = True
    flip: bool = True
    quarter_turn: bool = True
    rotate_deg: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    gain: float = 0.0
    offset: float = 0.0
    drop_channel: float = 0.0
    noise: float = 0.0
    blur_px: float = 0.0
    defocus_px: float = 0.0

    @model_validator(mode="after")
    def _in_range(self) -> "AugmentConfig":
        Augment(**self.model_dump())
        return self


Pooling = Literal["mean", "std", "max", "mean+std"]


class Readout(Section):
    """What of a model's features is its embedding.

    Attributes:
        layer: counted from 1, stages of a backbone or blocks of a transformer; None for the last, from which the model
            goes on to its latent map or decoder.
        pooling: over the positions of the layer; `mean+std` has the means first, then the standard deviations.
    """

    layer: int | None = Field(default=None, ge=1)
    pooling: Pooling = "mean"


LAST = Readout()


class DataConfig(Section):
    """What is read, see `bie_stream.open` and `bie_stream.Loader`.

    Attributes:
        path: folder or URL of the dataset, or a list of several, which stand in the same batches. Each is normalised
            by its own statistics. Models with channels `agnostic` take those of unlike channels.
        weights: of several datasets, how often each has its turn; None for their numbers of samples.
        split: None for all samples.
        channels: names, in order; None for all, of several datasets in the order in which they first come.
        batch_size: samples in one global batch, over all processes.
        views: images of each sample in a batch, each with a crop and augmentation of its own.
        crop: side of the square images in pixels; None for whole samples.
    """

    path: str | tuple[str, ...]
    weights: tuple[float, ...] | None = None
    split: str | None = "train"
    channels: tuple[str, ...] | None = None
    batch_size: int = Field(default=32, ge=1)
    views: int = Field(default=1, ge=1)
    crop: int | None = Field(default=None, ge=1)
    normalise: Normalise = "image"
    augment: AugmentConfig = AugmentConfig()
    backend: Literal["auto", "native", "dali"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    prefetch_batches: int = Field(default=2, ge=1)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _one_weight_for_each(self) -> "DataConfig":
        if not self.paths:
            raise ValueError("path should name a dataset")
        if self.weights is not None and len(self.weights) != len(self.paths):
            raise ValueError(f"{len(self.weights)} weights for {len(self.paths)} datasets: give each one")
        return self


class ContrastConfig(Section):
    """Embeddings of one group near each other and far from others, see `train.losses.contrast`.

    Attributes:
        of: `channels`, those of one image, which must be expanded; `replicates`, images that have the same label.
        label: that replicates share, a column of the sample table: `compound`; `well` is the well on its plate. With
            `data.views` the views of a sample are replicates, too.
    """

    of: Literal["channels", "replicates"]
    label: str | None = None
    weight: float = Field(default=0.1, gt=0)
    temperature: float = Field(default=0.1, gt=0)
    similarity: Literal["cosine", "euclidean"] = "cosine"

    @model_validator(mode="after")
    def _label_of_replicates(self) -> "ContrastConfig":
        if (self.of == "replicates") != (self.label is not None):
            raise ValueError("label is what replicates share: give it for them, and for nothing else")
        return self


class ModelConfig(Section):
    """What all models have.

    Attributes:
        contrast: None for none.
    """

    contrast: ContrastConfig | None = None

    @property
    def kind_of_channels(self) -> str:
        """How the model takes channels: `stack`, `expand`, `agnostic`."""
        return str(getattr(self, "channels", "stack"))

    @model_validator(mode="after")
    def _channels_to_contrast(self) -> Self:
        if self.contrast is not None and self.contrast.of == "channels" and self.kind_of_channels == "stack":
            raise ValueError("contrast of channels needs an embedding of each: channels expand, or agnostic of an mae")
        return self


class AutoencoderConfig(ModelConfig):
    """What the models with a latent map have.

    Attributes:
        channels: `stack`, all of an image go in together, in the order in which they are named; `expand`, each is an
            image of its own.
        ssim: share of the reconstruction's loss that is 1 − SSIM, see `train.losses.ssim`.
        fourier: share of it that is the spectrum's distance, see `train.losses.fourier`.
        latent_dim: numbers at each position of the latent map. (The embedding is as wide as the encoder's features.)
    """

    channels: Literal["stack", "expand"] = "stack"
    reconstruction: Literal["mse", "l1", "huber"] = "mse"
    ssim: float = Field(default=0.0, ge=0, le=1)
    fourier: float = Field(default=0.0, ge=0, le=1)
    latent_dim: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.ssim + self.fourier > 1:
            raise ValueError(f"ssim {self.ssim} and fourier {self.fourier} are shares of one loss: at most 1 together")
        return self


STANDARD_STEM = 4  # what a ResNet halves twice before its first stage


class TimmConfig(AutoencoderConfig):
    """A backbone of timm, and a decoder.

    Attributes:
        encoder: a timm model with `features_only`.
        pretrained: what the encoder begins with: `false`, random weights; `true`, those that timm names, from the
            Hugging Face hub; a file of them (.safetensors, .pth).
        stem: `standard`, that of the encoder; `small`, for small images: of a ResNet's the strides 2 of the first
            convolution and of the pooling after it are left out, so that all strides are a quarter.
        stride: pixels of the image for one position of the latent map, along y and x: a crop of 128 at stride 16
            has 8 x 8 = 64 positions.
        decoder: `light`, one convolution for each doubling; `mirror`, the encoder's residual blocks backwards (of a
            ResNet), which costs as much as the encoder.
        decoder_width: channels of the last stage of a light decoder, see `train.models.decoder`.
    """

    encoder: str = "resnet18"
    pretrained: bool | Path = False
    stem: Literal["standard", "small"] = "standard"
    stride: Literal[1, 2, 4, 8, 16, 32] = 16
    decoder: Literal["light", "mirror"] = "light"
    decoder_width: int = Field(default=64, ge=8, multiple_of=8)

    @property
    def title(self) -> str:
        """What it is, in some words."""
        return f"{getattr(self, 'kind', '')} of {self.encoder}"

    @model_validator(mode="after")
    def _fitting_decoder(self) -> Self:
        if self.decoder == "mirror":
            if not re.match(r"resnet(18|34|50|101|152)\b", self.encoder):
                raise ValueError(f"decoder mirror is for resnet18 to resnet152, not for {self.encoder!r}: take light")
            if self.decoder_width != TimmConfig.model_fields["decoder_width"].default:
                raise ValueError("decoder_width is that of a light decoder: a mirror is as wide as its encoder")
        if self.stem == "small" and not self.encoder.startswith("resnet"):
            raise ValueError(f"stem small is for ResNets, not for {self.encoder!r}")
        if self.stem == "standard" and self.stride < STANDARD_STEM:
            raise ValueError(f"stride {self.stride} needs stem small: the standard one has {STANDARD_STEM} already")
        return self


class AEConfig(TimmConfig):
    """A plain autoencoder."""

    kind: Literal["ae"] = "ae"


class CodebookConfig(Section):
    """What all codebooks have, see `train.models.quantise`.

    Attributes:
        codes: size of the codebook.
        decay: of the moving averages by which dead codes are known, and codes themselves where they follow means; per
            step.
        commitment: weight of the commitment loss (β of van den Oord et al. 2017).
        revive_below: a code used less than this share of the mean use is placed anew on a vector of the batch.
    """

    codes: int = Field(default=512, ge=2)
    decay: float = Field(default=0.99, gt=0, lt=1)
    commitment: float = Field(default=0.25, ge=0)
    revive_below: float = Field(default=0.03, ge=0, lt=1)

    @property
    def books(self) -> int:
        """How many codebooks there are."""
        return 1


class EMACodesConfig(CodebookConfig):
    """A codebook that follows the means of what it stands for."""

    kind: Literal["ema"] = "ema"


class GradientCodesConfig(CodebookConfig):
    """A codebook that the optimiser learns; its own loss has weight 1."""

    kind: Literal["gradient"] = "gradient"


class ResidualCodesConfig(CodebookConfig):
    """Several codebooks that follow means, each of what those before it leave over.

    Attributes:
        levels: how many.
    """

    kind: Literal["residual"] = "residual"
    levels: int = Field(default=4, ge=2)

    @property
    def books(self) -> int:
        return self.levels


class FSQConfig(Section):
    """Finite scalar quantisation (Mentzer et al. 2024): no codebook, each of a few numbers is rounded.

    Attributes:
        levels: of each number; there are as many codes as their product.
    """

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field(default=(8, 8, 8), min_length=1)

    @property
    def codes(self) -> int:
        return math.prod(self.levels)

    @property
    def books(self) -> int:
        return 1


def _kind(default: str) -> Callable[[Any], str]:
    """What tells the members of a union apart, where it may be left out."""
    return lambda given: given.get("kind", default) if isinstance(given, dict) else getattr(given, "kind", "")


QuantiserConfig = Annotated[
    Annotated[EMACodesConfig, Tag("ema")] | Annotated[GradientCodesConfig, Tag("gradient")]
    | Annotated[ResidualCodesConfig, Tag("residual")] | Annotated[FSQConfig, Tag("fsq")],
    Discriminator(_kind("ema")),
]  # fmt: skip


class VQVAEConfig(TimmConfig):
    """A VQ-VAE: every position of the latent map becomes one of a codebook's vectors."""

    kind: Literal["vqvae"] = "vqvae"
    quantiser: QuantiserConfig = EMACodesConfig()


class ZalandoConfig(AutoencoderConfig):
    """The small VQ-VAE of van den Oord et al. 2017, section 4.1, with the names of the widely used notebook of it.

    Attributes:
        num_hiddens: channels of all but the first and the last layer.
        num_residual_layers: residual blocks, of the encoder and of the decoder.
        num_residual_hiddens: channels within each.
    """

    kind: Literal["zalando"] = "zalando"
    num_hiddens: int = Field(default=128, ge=2, multiple_of=2)
    num_residual_layers: int = Field(default=2, ge=0)
    num_residual_hiddens: int = Field(default=32, ge=1)
    quantiser: QuantiserConfig = EMACodesConfig()

    @property
    def stride(self) -> int:
        """Pixels of the image for one position of the latent map."""
        return 4

    @property
    def title(self) -> str:
        """What it is, in some words."""
        return f"vqvae of {self.num_residual_layers} residual layers"


class VAEConfig(TimmConfig):
    """A VAE, or with any other `beta` a β-VAE: every position of the latent map is a Gaussian.

    Attributes:
        beta: weight of the divergence from the prior. With `mse` it is the variance of the pixels' noise that the
            model believes in, and normalised pixels have a variance of about 1; see `train.losses.kl`.
        beta_warmup_steps: over which it grows from 0.
        free_nats: of each latent channel at each position, that cost nothing.
    """

    kind: Literal["vae"] = "vae"
    beta: float = Field(default=0.05, ge=0)
    beta_warmup_steps: Steps = 0
    free_nats: float = Field(default=0.0, ge=0)


class MAEConfig(ModelConfig):
    """A masked autoencoder over a vision transformer, see `train.models.mae`.

    Attributes:
        channels: `stack`, a token is a patch of all channels; `agnostic`, of one, whichever it is.
        mask_ratio: share of the tokens that are hidden.
        normalise_patches: whether what is drawn is each channel of each patch with mean 0 and variance 1.
        fourier: weight α of the spectrum's distance; that of the pixels' is 1 − α.
        drop_path: probability that the last block is left out for an image; of earlier ones less.
        layer_scale: what each block's share begins with; None for no such scale.
    """

    kind: Literal["mae"] = "mae"
    size: Literal["tiny", "small", "base", "large", "huge"] = "small"
    patch: Literal[8, 14, 16, 32] = 16
    channels: Literal["stack", "agnostic"] = "stack"
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    normalise_patches: bool = True
    fourier: float = Field(default=0.0, ge=0, le=1)
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    layer_scale: float | None = Field(default=None, gt=0)
    decoder_width: int = Field(default=256, ge=4, multiple_of=4)
    decoder_depth: int = Field(default=4, ge=1)
    decoder_heads: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _whole_heads(self) -> "MAEConfig":
        if self.decoder_width % self.decoder_heads:
            raise ValueError(f"decoder_width {self.decoder_width} is no multiple of decoder_heads {self.decoder_heads}")
        return self

    @property
    def title(self) -> str:
        """What it is, in some words."""
        return f"mae of ViT {self.size} / {self.patch}"

    @property
    def stride(self) -> int:
        """Of what both sides of an image must be multiples."""
        return self.patch


LatentConfig = AEConfig | VAEConfig | VQVAEConfig | ZalandoConfig
AnyModelConfig = Annotated[LatentConfig | MAEConfig, Field(discriminator="kind")]


class OptimiserConfig(Section):
    """A timm optimiser by name.

    Attributes:
        betas: of the moving averages of the gradient and of its square; None for those of the optimiser. Masked
            autoencoders are trained with 0.9, 0.95 (He et al. 2022).
    """

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] | None = None


class ScheduleConfig(Section):
    """A timm scheduler by name, over all steps of the run; driven by steps, not epochs.

    Attributes:
        warmup_steps: the first, over which the rate grows from `warmup_lr`.
        cooldown_steps: the last, at `min_lr`.
    """

    name: Literal["cosine", "tanh", "poly"] = "cosine"
    warmup_steps: Steps = 50
    cooldown_steps: Steps = 0
    warmup_lr: float = Field(default=1e-5, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)


class TrainingConfig(Section):
    """How long, how precise, and what is written when (in steps).

    Attributes:
        steps: of the whole run.
        precision: `auto` is bf16 where that is faster (GPUs that have it, CPUs with AMX), else fp32. bf16 is
            autocast: weights, optimiser and losses stay fp32.
        clip_grad_norm: None for no clipping.
        image_every: input and reconstruction for TensorBoard.
    """

    steps: Steps
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    log_every: int = Field(default=25, ge=1)
    image_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)

    @model_validator(mode="after")
    def _whole_intervals(self) -> "TrainingConfig":
        if not _number(self.steps):
            raise ValueError(f"steps {self.steps} are none at all")
        for name in ("checkpoint_every", "image_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a multiple of log_every {self.log_every}: "
                    "a logged interval would be cut in two by a resume"
                )
        return self


class Config(Section):
    """A run.

    Attributes:
        readout: of its embedding; nothing in training depends on it.
    """

    run_dir: Path
    data: DataConfig
    model: AnyModelConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    readout: Readout = LAST

    @field_validator("optimiser")
    @classmethod
    def _known_optimiser(cls, optimiser: OptimiserConfig) -> OptimiserConfig:
        import timm.optim

        known = timm.optim.list_optimizers()
        if optimiser.name not in known:
            raise ValueError(f"timm has no optimiser {optimiser.name!r}; {nearest(optimiser.name, known)}")
        info = timm.optim.get_optimizer_info(optimiser.name)
        if optimiser.betas is not None and not (info.has_betas and info.num_betas == len(optimiser.betas)):
            raise ValueError(f"{optimiser.name} has no two betas: leave optimiser.betas out")
        return optimiser

    @model_validator(mode="after")
    def _fitting(self) -> "Config":
        if self.data.crop is not None and self.data.crop % self.model.stride:
            raise ValueError(f"data.crop {self.data.crop} must be a multiple of model.stride {self.model.stride}")
        times = self.schedule.warmup_steps, self.schedule.cooldown_steps, self.training.steps
        if len({type(time) for time in times if time != 0}) == 1:  # all in one unit
            warmup, cooldown, steps = map(_number, times)
            if warmup + cooldown >= steps:
                raise ValueError(
                    f"schedule.warmup_steps {times[0]} and cooldown_steps {times[1]} must together be below "
                    f"training.steps {times[2]}"
                )
        return self

    def in_steps(self, per_epoch: int) -> "Config":
        """The same with epochs as steps, of which an epoch has this many.

        Raises:
            ConfigError: then warm-up and cool-down are longer than the run.
        """
        try:
            return Config.model_validate(_in_steps(self.model_dump(), per_epoch))
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(fault) for fault in error.errors())) from error

    def yaml(self) -> str:
        """The resolved configuration, every default spelt out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def _number(time: int | str) -> float:
    """Of steps or epochs."""
    return float(str(time).split()[0])


def _in_steps(tree: dict[str, Any], per_epoch: int) -> dict[str, Any]:
    def resolved(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return _in_steps(value, per_epoch)
        timed = isinstance(value, str) and name.endswith("steps")
        return round(_number(value) * per_epoch) if timed else value

    return {name: resolved(name, value) for name, value in tree.items()}


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file; `overrides` are `section.key=value`, the value again YAML.

    Raises:
        ConfigError: with the path of the key, what was given and what is known.
    """
    try:
        tree = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"no configuration at {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} should hold the sections {', '.join(Config.model_fields)}")
    for override in overrides:
        _set(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(_explain(fault) for fault in error.errors())}") from error


def _set(tree: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override!r} should look like training.steps=100")
    *sections, key = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
    tree[key] = yaml.safe_load(value)


def _explain(fault: Any) -> str:
    path, section = _place(fault["loc"])
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        return f"unknown key {name}; {nearest(path[-1], list(section.model_fields))}"
    if fault["type"] in ("missing", "value_error"):
        return f"{name}: {fault['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    return f"{name}: {fault['msg']}, given {fault['input']!r}"


def _place(loc: Sequence[Any]) -> tuple[list[str], type[Section]]:
    """The path of a key without what only tells unions apart, and the last section on it."""
    path: list[str] = []
    section: type[Section] = Config
    there: dict[str, type[Section]] = {}  # sections that the last key may hold, by kind
    for part in loc:
        if part in there:
            section = there[part]
        elif part in section.model_fields:
            path.append(str(part))
            there = _sections(section.model_fields[part].annotation)
            section = next(iter(there.values())) if len(there) == 1 else section
        elif not isinstance(part, str) or part.isidentifier():  # else a name that pydantic has made up
            path.append(str(part))
    return path, section


def _sections(annotation: Any) -> dict[str, type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        kind = annotation.model_fields.get("kind")
        return {str(kind.default) if kind else annotation.__name__: annotation}
    return {name: section for part in typing.get_args(annotation) for name, section in _sections(part).items()}
