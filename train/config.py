"""The whole configuration: one YAML → frozen models. What is not here cannot be set, and a misspelt key is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bie_stream.augment import Augment
from bie_stream.errors import ConfigError, nearest
from bie_stream.normalise import Normalise


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class DataConfig(Section):
    """What is read, see `bie_stream.open` and `bie_stream.Loader`.

    Attributes:
        path: folder of the dataset.
        split: None for all samples.
        channels: names, in order; None for all.
        batch_size: samples in one global batch, over all processes.
        crop: side of the square images in pixels; None for whole samples.
    """

    path: Path
    split: str | None = "train"
    channels: tuple[str, ...] | None = None
    batch_size: int = Field(default=32, ge=1)
    crop: int | None = Field(default=None, ge=1)
    normalise: Normalise = "image"
    augment: AugmentConfig = AugmentConfig()
    backend: Literal["auto", "native", "dali"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    prefetch_batches: int = Field(default=2, ge=1)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)


class ContrastConfig(Section):
    """Embeddings of one group near each other and far from others, see `train.losses.contrast`.

    Attributes:
        of: `channels`, those of one image, which must be expanded; `replicates`, images that have the same label.
        label: that replicates share, a column of the sample table: `well`, `compound`.
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


class AutoencoderConfig(Section):
    """What all models have.

    Attributes:
        channels: `stack`, all of an image go in together, in the order in which they are named; `expand`, each is an
            image of its own.
        encoder: a timm model with `features_only`.
        pretrained: what the encoder begins with: `false`, random weights; `true`, those that timm names, from the
            Hugging Face hub; a file of them (.safetensors, .pth).
        stride: pixels of the image for one position of the latent map, along y and x: a crop of 128 at stride 16
            has 8 x 8 = 64 positions.
        latent_dim: numbers at each position of the latent map. (The embedding is as wide as the encoder's features.)
        decoder_width: channels of the decoder's last stage, see `train.models.decoder`.
    """

    channels: Literal["stack", "expand"] = "stack"
    reconstruction: Literal["mse", "l1", "huber"] = "mse"
    encoder: str = "resnet18"
    pretrained: bool | Path = False
    stride: Literal[4, 8, 16, 32] = 16
    latent_dim: int = Field(default=64, ge=1)
    decoder_width: int = Field(default=64, ge=8, multiple_of=8)
    contrast: ContrastConfig | None = None

    @property
    def title(self) -> str:
        """What it is, in some words."""
        return f"{getattr(self, 'kind', '')} of {self.encoder}"

    @model_validator(mode="after")
    def _channels_to_contrast(self) -> "AutoencoderConfig":
        if self.contrast is not None and self.contrast.of == "channels" and self.channels != "expand":
            raise ValueError("contrast of channels needs an embedding of each: channels expand")
        return self


class AEConfig(AutoencoderConfig):
    """A plain autoencoder."""

    kind: Literal["ae"] = "ae"


class VQVAEConfig(AutoencoderConfig):
    """A VQ-VAE: every position of the latent map becomes one of `codes` vectors.

    Attributes:
        codes: size of the codebook.
        decay: of the codebook's moving averages, per step.
        commitment: weight of the commitment loss (β of van den Oord et al. 2017).
        revive_below: a code used less than this share of the mean use is placed anew on a vector of the batch.
    """

    kind: Literal["vqvae"] = "vqvae"
    codes: int = Field(default=512, ge=2)
    decay: float = Field(default=0.99, gt=0, lt=1)
    commitment: float = Field(default=0.25, ge=0)
    revive_below: float = Field(default=0.03, ge=0, lt=1)


class VAEConfig(AutoencoderConfig):
    """A VAE, or with any other `beta` a β-VAE: every position of the latent map is a Gaussian.

    Attributes:
        beta: weight of the divergence from the prior. With `mse` it is the variance of the pixels' noise that the
            model believes in, and normalised pixels have a variance of about 1; see `train.losses.kl`.
        beta_warmup_steps: over which it grows from 0.
        free_nats: of each latent channel at each position, that cost nothing.
    """

    kind: Literal["vae"] = "vae"
    beta: float = Field(default=0.05, ge=0)
    beta_warmup_steps: int = Field(default=0, ge=0)
    free_nats: float = Field(default=0.0, ge=0)


class MAEConfig(Section):
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


ModelConfig = Annotated[AEConfig | VAEConfig | VQVAEConfig | MAEConfig, Field(discriminator="kind")]


_MODELS: dict[str, type[Section]] = {"ae": AEConfig, "vae": VAEConfig, "vqvae": VQVAEConfig, "mae": MAEConfig}


class OptimiserConfig(Section):
    """A timm optimiser by name."""

    name: str = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)


class ScheduleConfig(Section):
    """A timm scheduler by name, over all steps of the run; driven by steps, not epochs."""

    name: Literal["cosine", "tanh", "poly"] = "cosine"
    warmup_steps: int = Field(default=50, ge=0)
    warmup_lr: float = Field(default=1e-5, ge=0)
    min_lr: float = Field(default=1e-5, ge=0)


class TrainingConfig(Section):
    """How long, how precise, and what is written when (in steps).

    Attributes:
        precision: `auto` is bf16 where that is faster (GPUs that have it, CPUs with AMX), else fp32. bf16 is
            autocast: weights, optimiser and losses stay fp32.
        clip_grad_norm: None for no clipping.
        image_every: input and reconstruction for TensorBoard.
    """

    steps: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    clip_grad_norm: float | None = Field(default=1.0, gt=0)
    log_every: int = Field(default=25, ge=1)
    image_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)

    @model_validator(mode="after")
    def _whole_intervals(self) -> "TrainingConfig":
        for name in ("checkpoint_every", "image_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} {getattr(self, name)} must be a multiple of log_every {self.log_every}: "
                    "a logged interval would be cut in two by a resume"
                )
        return self


class Config(Section):
    """A run."""

    run_dir: Path
    data: DataConfig
    model: ModelConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig

    @field_validator("optimiser")
    @classmethod
    def _known_optimiser(cls, optimiser: OptimiserConfig) -> OptimiserConfig:
        import timm.optim

        known = timm.optim.list_optimizers()
        if optimiser.name not in known:
            raise ValueError(f"timm has no optimiser {optimiser.name!r}; {nearest(optimiser.name, known)}")
        return optimiser

    @model_validator(mode="after")
    def _fitting(self) -> "Config":
        if self.data.crop is not None and self.data.crop % self.model.stride:
            raise ValueError(f"data.crop {self.data.crop} must be a multiple of model.stride {self.model.stride}")
        if self.schedule.warmup_steps >= self.training.steps:
            raise ValueError(
                f"schedule.warmup_steps {self.schedule.warmup_steps} must be below training.steps {self.training.steps}"
            )
        return self

    def yaml(self) -> str:
        """The resolved configuration, every default spelt out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


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
    path = [str(part) for part in fault["loc"] if part not in _MODELS]
    if fault["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(path)}; {nearest(path[-1], _keys(fault['loc'][:-1]))}"
    given = "" if fault["type"] in ("missing", "value_error") else f", given {fault['input']!r}"
    return f"{'.'.join(path)}: {fault['msg'].removeprefix('Value error, ')}{given}".removeprefix(": ")


def _keys(path: Sequence[Any]) -> list[str]:
    """The keys of the section at this path."""
    kinds: dict[Any, type[Section]] = {
        (): Config, ("data",): DataConfig, ("data", "augment"): AugmentConfig, ("optimiser",): OptimiserConfig,
        ("schedule",): ScheduleConfig, ("training",): TrainingConfig,
        **{("model", kind): config for kind, config in _MODELS.items()},
        **{("model", kind, "contrast"): ContrastConfig for kind in _MODELS},
    }  # fmt: skip
    return list(kinds[tuple(path)].model_fields)
