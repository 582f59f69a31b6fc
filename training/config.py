"""Settings of ``foldserve train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, model_validator

from training.recipes import RecipeName, recipe_settings

# What may differ when a run is taken up again: where, on what and how it runs, not what it computes.
RESUMABLE_FIELDS = frozenset({"data_dir", "run_dir", "device", "threads", "checkpoint_every", "preview"})


class TrainConfig(BaseModel, frozen=True, extra="forbid", use_attribute_docstrings=True):
    """Train a network, with progress and checkpoints; the same command again resumes an interrupted run.

    The defaults shown are those of lenet; another network brings its own recipe (see docs/training.md).
    """

    arch: str = "lenet"
    """The network: a name in the registry (alexnet, lenet, resnet), or your own as package.module:factory."""

    recipe: RecipeName = "default"
    """Which of the network's recipes fills in the settings that are not given: default (minutes) or long."""

    dataset: str = "fashion-mnist"
    """fashion-mnist, mnist or cifar10, found or fetched by itself; or a folder of images, FOLDER/CLASS/* or
    FOLDER/{train,val,test}/CLASS/*."""

    data_dir: Path | None = None
    """Folder with the named data set's files, or where a folder of images is now; no other is searched."""

    image_size: int | None = Field(None, ge=1)
    """Side in pixels that a folder's images are brought to; by default their own if all agree, else 224."""

    skip_unreadable: bool = False
    """Leave out images of a folder that cannot be read; without it they are listed and nothing is trained."""

    run_dir: Path = Path("runs/lenet")
    """Folder of the run: checkpoints, metrics and report; by default runs/ARCH."""

    epochs: int = Field(12, ge=1)
    """Passes over the training images; the schedule is stretched over all of them."""

    batch_size: int = Field(128, ge=2)
    """Images a step, over all processes; an epoch's last incomplete batch is left out, another each time."""

    accumulate: int = Field(1, ge=1)
    """Parts in which a batch is computed in turn, to save memory; batch norm sees one part at a time."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with Nesterov momentum 0.9, or AdamW."""

    lr: float = Field(0.1, gt=0)
    """Highest learning rate of the schedule."""

    schedule: Literal["cosine", "one-cycle"] = "cosine"
    """cosine: linear warm-up, then a half cosine to 0; one-cycle: up and down between half cosines, momentum
    the other way."""

    warmup: float = Field(0.2, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""

    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay, on the weights of convolutions and linear layers only."""

    clip_norm: float = Field(0.0, ge=0)
    """Largest norm of all gradients together, above which they are scaled down; 0 clips nothing."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target's probability that is spread evenly over all classes."""

    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay a step of the moving average of the weights, which is then what is served; 0 keeps none."""

    augment: bool = True
    """Augment the training images as the settings below say; off, none of them counts."""

    crop_padding: int = Field(1, ge=0)
    """Pixels of black border from which the random crop is cut; 0 for no crop."""

    smallest_crop: float = Field(1.0, gt=0, le=1)
    """Smallest share of the area that a random resized crop keeps before it is scaled back up; 1 for none."""

    flip: bool | None = None
    """Mirror half of the images; by default where that keeps the class, as for clothes and not for digits."""

    erase_probability: float = Field(0.0, ge=0, le=1)
    """Probability with which a rectangle of a training image is blackened."""

    mixup: float = Field(0.0, ge=0)
    """Alpha of mixup (two images blended, and their classes); 0 for none. With cutmix, half the batches."""

    cutmix: float = Field(0.0, ge=0)
    """Alpha of cutmix (a rectangle from another image, and its class by its area); 0 for none."""

    batch_norm: bool = True
    """Batch norm after each convolution."""

    activation: Literal["relu", "sigmoid"] = "relu"
    """The activation function."""

    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which a feature before each linear layer is zeroed while training."""

    width: float = Field(1.0, gt=0)
    """Scales the channels of every convolution (alexnet, resnet)."""

    validation_count: int | None = Field(None, ge=1)
    """Training images held out to choose the best epoch by, the same for every seed; by default a tenth, at
    most 5000."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the images and their augmentation."""

    deterministic: bool = False
    """Use deterministic algorithms only: bit-identical weights from run to run on one machine."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the heavy layers while training; auto is bf16 where that is faster (GPUs that have it,
    and for foldserve's own networks processors that have it), else fp32."""

    channels_last: bool = True
    """Keep the channels of a pixel together in memory: faster on CPU and GPU."""

    compile: bool = False
    """Compile the network with torch.compile: a minute at the start, faster steps on a GPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes CUDA where there is a GPU."""

    threads: int | None = Field(None, ge=1)
    """Threads on the CPU; by default tried out at the start (all of them with --deterministic)."""

    checkpoint_every: float = Field(30.0, ge=0)
    """Seconds after which an interrupted run loses nothing older: last.pt is also written within an epoch."""

    preview: Path | None = None
    """Write a picture of augmented training images to this file, and train nothing."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, given: Any) -> Any:
        """Put the recipe of the architecture in place of the defaults, below what was given."""
        if not isinstance(given, dict):
            return given
        arch, recipe = given.get("arch", "lenet"), given.get("recipe", "default")
        if not isinstance(arch, str) or recipe not in get_args(RecipeName):
            return given  # the fields' own checks say what is wrong
        folder = Path("runs") / arch.rpartition(":")[2]
        return {"run_dir": folder, **recipe_settings(arch, recipe), **given}
