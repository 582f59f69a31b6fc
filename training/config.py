"""Settings of ``foldserve train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, model_validator

from foldserve.training.recipes import RecipeName, recipe_settings

# May differ when a run is resumed: they say where and on which device it runs, not what it computes.
RESUMABLE_FIELDS = frozenset({"data_dir", "run_dir", "device", "threads", "checkpoint_every", "preview"})


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Train a network, writing checkpoints; run the same command again to resume an interrupted run.

    The defaults shown are those of lenet; other networks have recipes of their own (see docs/training.md).
    """

    arch: str = "lenet"
    """Network architecture: alexnet, lenet, resnet, or your own as package.module:factory."""

    recipe: RecipeName = "default"
    """Recipe for the settings that are not given: default (takes minutes) or long (best accuracy)."""

    dataset: str = "fashion-mnist"
    """Data set: fashion-mnist, mnist or cifar10, downloaded if not found; or a folder of images with
    FOLDER/CLASS/* or FOLDER/{train,val,test}/CLASS/*."""

    data_dir: Path | None = None
    """Folder with the data set's files, the only one searched; or the new place of a folder of images."""

    image_size: int | None = Field(None, ge=1)
    """Side in pixels to which a folder's images are resized; by default their own if all agree, else 224."""

    skip_unreadable: bool = False
    """Skip images of a folder that cannot be read; without it they are listed and training does not start."""

    run_dir: Path = Path("runs/lenet")
    """Folder for checkpoints, metrics and report; by default runs/ARCH."""

    epochs: int = Field(12, ge=1)
    """Number of passes over the training images; the learning rate schedule spans all of them."""

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

    crop_padding: int = Field(1, ge=0)
    """Width in pixels of the black border added before a random crop; 0 disables the crop."""

    smallest_crop: float = Field(1.0, gt=0, le=1)
    """Smallest fraction of the area that a random resized crop keeps; 1 disables it."""

    flip: bool | None = None
    """Mirror half of the images; by default for all data sets but mnist: a mirrored digit is no digit."""

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

    preview: Path | None = None
    """Write a picture of augmented training images to this file and exit without training."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, given: Any) -> Any:
        """Replace the defaults by the recipe of the architecture, except for the settings that are given."""
        if not isinstance(given, dict):
            return given
        arch, recipe = given.get("arch", "lenet"), given.get("recipe", "default")
        if not isinstance(arch, str) or recipe not in get_args(RecipeName):
            return given  # the fields' own checks say what is wrong
        folder = Path("runs") / arch.rpartition(":")[2]
        return {"run_dir": folder, **recipe_settings(arch, recipe), **given}
