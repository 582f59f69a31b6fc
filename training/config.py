"""Settings of ``foldserve train``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    field_validator,
    model_validator,
)

from foldserve.training.recipes import RecipeName, recipe_settings
from foldserve.training.settings_file import default_run_dir, read_settings, renamed

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(given: Any) -> Any:
    """Return seconds of a text such as 90s, 10m or 1h30m; anything else unchanged."""
    if not isinstance(given, str) or re.fullmatch(r"\s*[\d.]+\s*", given):
        return given
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh])", text := given.strip().lower())
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"expected a time such as 90s, 10m or 1h30m (given {given})")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _decisive(settings: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(name for name, value in settings.items() if value not in (None, "auto"))


Duration = Annotated[float, BeforeValidator(_seconds)]


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Train a network, writing checkpoints; run the same command again to resume an interrupted run.

    Each network has a recipe, and images of your own have a rule: they replace some of the defaults shown
    (docs/training.md).
    """

    arch: str = "lenet"
    """Network architecture: alexnet, lenet, resnet, or your own as package.module:factory. For a folder or a
    table it is chosen by the images if it is not given."""

    recipe: RecipeName = "default"
    """Recipe for the settings that are not given: default (takes minutes) or long (best accuracy)."""

    dataset: str = "fashion-mnist"
    """Data set: fashion-mnist, mnist or cifar10, downloaded if not found; a folder of images with
    FOLDER/CLASS/* or FOLDER/{train,val,test}/CLASS/*; or tables of images and labels (.csv, .jsonl,
    .parquet): one file, several with commas between, or a folder of them."""

    data_dir: Path | None = None
    """Folder with the data set's files, the only one searched; or the new place of a folder of images."""

    image_size: int | None = Field(None, ge=1)
    """Side in pixels to which a folder's images are resized; by default what suits the network and them."""

    fit: Literal["crop", "pad", "stretch"] = "crop"
    """How a picture of another shape becomes the input, in training and wherever the network is used: crop
    keeps the centre, pad keeps all and mirrors it at its borders, stretch keeps all and distorts it."""

    group_by: str | None = None
    """Keep images of one group on one side of each split made here: folder (the folder that an image lies
    in), or a regular expression that finds the group in its path, such as 'patient[0-9]+'."""

    path_column: str | None = None
    """Column of a table that holds the image files, or their bytes. Default: image, path, file_name and other
    usual names."""

    label_column: str | None = None
    """Column of a table that holds the labels. Default: label, class and other usual names."""

    skip_broken: bool = False
    """Leave out images that cannot be read and rows of a table that are wrong; without it they are listed and
    training does not start."""

    run_dir: Path = Path("runs/lenet")
    """Folder for checkpoints, metrics and report; by default runs/ARCH, or runs/DATASET for a folder or a
    table if --arch is not given."""

    config: Path | None = None
    """Take the settings that are not given from this file, the config.json of a run, or from the folder of
    one."""

    resume: bool = False
    """Go on with the run in --run-dir, also a finished one: settings that are not given are the run's, and
    --epochs, --patience and --time-limit may be other ones."""

    init: Path | None = None
    """Start from weights: a run folder, a checkpoint, or a state dict (.pt or .safetensors). What fits is
    taken; the last layer is new if the classes differ. On a folder or a table without --arch, a run or a
    checkpoint of one also gives the network."""

    freeze: tuple[str, ...] = ()
    """With --init: names or patterns of layers that stay as they are, their batch norm too, such as
    features.0 or 'stem*'; several with commas."""

    backbone_lr_scale: float = Field(1.0, gt=0, le=1)
    """With --init: learning rate of the weights that were taken, as a fraction of that of new ones."""

    epochs: int = Field(12, ge=1)
    """Number of passes over the training images; the learning rate schedule spans all of them."""

    patience: int | None = Field(None, ge=1)
    """Stop after this number of epochs in a row without a better one in validation; those of the warm-up do
    not count."""

    time_limit: Duration | None = Field(None, gt=0)
    """Time for the run, such as 90s, 10m or 1h30m, over all starts: fewer steps are taken if --epochs would
    take longer, and the learning rate still falls to its end."""

    select: Literal["accuracy", "macro-f1"] = "accuracy"
    """Figure in validation that the best epoch is chosen by; macro-f1 counts all classes the same."""

    select_within: float = Field(0.0, ge=0, le=5)
    """Keep the last epoch whose figure is within so many standard errors of the best one's. 0 keeps the best
    itself; the rule for a folder or a table takes 1, since few validation images say little."""

    class_weights: str | None = None
    """Weights of the classes in the loss: balanced (inverse to their number of images), or a JSON file with
    a weight for each label."""

    sampler: Literal["shuffled", "balanced"] = "shuffled"
    """Order of the images: shuffled (each once per epoch), or balanced (each class equally often; images of
    rarer classes come several times, every image at least once)."""

    prune_images: float = Field(0.0, ge=0, le=0.5)
    """Fraction of the images that each epoch leaves out, drawn from those with the lowest losses, of which
    the others count double (InfoBatch): more epochs in the same time."""

    batch_size: int = Field(128, ge=2)
    """Images per step, over all processes; the last incomplete batch of each epoch is dropped."""

    accumulate: int = Field(1, ge=1)
    """Parts into which each batch is split to save memory; gradients are accumulated over them, and batch
    norm sees one at a time."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer: SGD with Nesterov momentum 0.9, or AdamW."""

    lr: float = Field(0.1, gt=0)
    """Peak learning rate."""

    schedule: Literal["cosine", "one-cycle"] = "cosine"
    """Learning rate schedule. cosine: linear warm-up, then a half cosine down to 0. one-cycle: half cosines
    up and down, with momentum moving the other way."""

    warmup: float = Field(0.2, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises."""

    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay, applied to the weights of convolutions and linear layers only."""

    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of all gradients together; larger ones are scaled down. 0 disables clipping."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Fraction of the target's probability that is spread evenly over all classes."""

    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay per step of a moving average of the weights, which is then exported and served; 0 disables it."""

    augment: bool = True
    """Augment the training images as the settings below say; if disabled, they have no effect."""

    augment_until: float = Field(1.0, gt=0, le=1)
    """Fraction of the steps in which images are augmented and mixed; the steps after it, at the lowest
    learning rates, take them as they are. 1 augments in all of them."""

    crop_padding: int = Field(1, ge=0)
    """Width in pixels of the border added before a random crop; 0 disables the crop."""

    border: Literal["mirror", "black"] | None = None
    """How images go on beyond their borders, where crops, shears, shifts and turns reach: mirror (the image
    again, mirrored) or black. By default black for mnist and fashion-mnist, whose images are on black, and
    mirror for all others."""

    smallest_crop: float = Field(1.0, gt=0, le=1)
    """Smallest fraction of the area that a random resized crop keeps; 1 disables it."""

    flip: bool | None = None
    """Mirror half of the images. By default yes for fashion-mnist and cifar10, no for mnist (a mirrored digit
    is no digit), and for a folder or a table yes unless mirror images look like other classes."""

    auto_augment: Literal["none", "trivial", "rand"] = "none"
    """Random operations on each image (shear, shift, turn, colours, contrast). trivial is TrivialAugment,
    one operation of any strength; rand is RandAugment, as the next two settings say. The rule for a folder or
    a table takes trivial below 20,000 images."""

    auto_augment_steps: int = Field(0, ge=0)
    """Least number of steps for which --auto-augment is used, as --time-limit plans them: shorter runs learn
    less with it. The rule for a folder or a table takes half of its own steps, unless --auto-augment is
    given."""

    rand_operations: int = Field(2, ge=1, le=14)
    """Operations per image of --auto-augment rand."""

    rand_magnitude: int = Field(9, ge=0, le=30)
    """Strength of the operations of --auto-augment rand, 0 to 30."""

    color_jitter: float = Field(0.0, ge=0, le=1)
    """Largest change of brightness, contrast and saturation, as a fraction; 0 disables it."""

    hue_jitter: float = Field(0.0, ge=0, le=0.5)
    """Largest change of the hue, as a fraction of the colour circle; 0 disables it."""

    erase_probability: float = Field(0.0, ge=0, le=1)
    """Probability that a random rectangle of a training image is erased to black."""

    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup, which blends two images and their targets; 0 disables it. With cutmix, each batch gets
    one of the two at random."""

    cutmix: float = Field(0.0, ge=0)
    """Alpha of cutmix, which pastes a rectangle of another image and blends the targets by area; 0 disables
    it."""

    batch_norm: bool = True
    """Use batch norm after each convolution."""

    activation: Literal["relu", "sigmoid"] = "relu"
    """Activation function."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability before linear layers."""

    width: float = Field(1.0, gt=0)
    """Factor for the channels of every convolution (alexnet, resnet)."""

    validation_count: int | None = Field(None, ge=1)
    """Number of training images held out to choose the best epoch, the same for every seed; by default a
    tenth, at most 5000."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed for the initial weights, the order of the images and their augmentation."""

    deterministic: bool = False
    """Use deterministic algorithms only, for bit-identical weights from run to run on one machine."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of convolutions and linear layers in training. auto is bf16 if it is faster (on GPUs with
    bf16, and for alexnet, lenet and resnet on CPUs with bf16), else fp32."""

    channels_last: bool = True
    """Store the channels of a pixel together in memory, which is faster on CPU and GPU."""

    compile: bool = False
    """Compile the network with torch.compile: takes a minute at the start and makes steps faster on a GPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; auto uses a GPU if there is one."""

    threads: int | None = Field(None, ge=1)
    """Number of CPU threads; by default the fastest in a trial at the start (all with --deterministic)."""

    checkpoint_every: float = Field(30.0, ge=0)
    """Seconds between writes of last.pt within an epoch: the most work that an interruption loses."""

    mlflow: bool | None = None
    """Log settings and figures in MLflow (extra mlflow). By default if MLFLOW_TRACKING_URI is set and MLflow
    is installed."""

    preview: Path | None = None
    """Write a picture of augmented training images to this file and exit without training."""

    # The fields that were given, by flag, environment or file; the others are defaults.
    _given: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def given(self) -> frozenset[str]:
        """The names of the settings that the user gave."""
        return self._given

    def with_given(self, settings: Mapping[str, Any]) -> Self:
        """Return a copy with ``settings`` as if the user had given them; None and auto leave one open."""
        copy = self.model_copy(update=dict(settings))
        copy._given |= _decisive(settings)
        return copy

    @model_validator(mode="wrap")
    @classmethod
    def _fill_in(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Replace the defaults by the recipe of the architecture, except for the settings that are given."""
        if not isinstance(given, dict):
            return handler(given)
        given = renamed(given)
        from_file = read_settings(cls.model_fields, given)
        asked = from_file | given
        arch, recipe = asked.get("arch", "lenet"), asked.get("recipe", "default")
        if not isinstance(arch, str) or recipe not in get_args(RecipeName):
            return handler(asked)  # the fields' own checks say what is wrong
        folder = default_run_dir(asked)
        usual = recipe_settings(arch, recipe)
        if asked.get("sampler") == "balanced":  # the two are not combined, and this one was asked for
            usual.pop("prune_images", None)
        settings = handler({"run_dir": folder, **usual, **asked})
        settings._given = _decisive(asked)
        return settings

    @field_validator("freeze")
    @classmethod
    def _leave_out_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name in names if name)  # --freeze '' freezes nothing

    @model_validator(mode="after")
    def _check_prune(self) -> Self:
        if self.prune_images and self.sampler == "balanced":
            raise ValueError(
                "--prune-images leaves images out that --sampler balanced shows again and again; leave "
                "one of them out, or try --class-weights balanced"
            )
        return self

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if self.init is None and (self.freeze or self.backbone_lr_scale != 1):
            flag = "--freeze" if self.freeze else "--backbone-lr-scale"
            raise ValueError(f"{flag} is for weights that are given: add --init, or leave it out")
        return self
