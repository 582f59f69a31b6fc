"""`python -m benchmarks.small_data`: the defaults for a folder of images, against settings tried by hand.

Makes small image folders of different kinds from what is at hand:

fashion   a subset of Fashion-MNIST, 28 pixels, 10 classes
glyphs    letters drawn in the fonts of this machine, turned and moved, 48 pixels, 10 classes
textures  stripes, checks, dots, rings and noise in colour, of many sizes, 5 classes, the rarest a twelfth
icons     Adwaita's icons by their folder, 48 pixels, if they are installed

Each row trains once with no settings but the data set (and --arch, if that is given), and once with each of
the settings in `TRIED`, in processes of their own below --runs. Finished runs are not repeated. Prints a
Markdown table: the accuracy and macro-F1 of the defaults, the best of the others, and the share of the
largest class.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foldserve.demo.children import ending_with_us
from foldserve.training.checkpoint import load_checkpoint
from foldserve.training.datasets import load_dataset

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

# Rate, batch size and epochs of each run by hand; the second is what fits 60,000 images.
TRIED = [
    {"lr": lr, "batch_size": batch, "epochs": epochs}
    for lr, batch, epochs in (
        (0.03, 32, 60),
        (0.1, 128, 12),
        (0.01, 32, 100),
        (0.1, 64, 60),
        (0.03, 64, 100),
        (0.003, 32, 60),
        (0.01, 32, 30),
        (0.05, 64, 60),
        (0.1, 32, 100),
        (0.01, 128, 12),
    )
]
_FONTS = Path("/usr/share/fonts")
_ICONS = Path("/usr/share/icons/Adwaita/48x48")
_LETTERS = "ABEGKPRS35"
_TEXTURES = {"stripes": 240, "checks": 120, "dots": 80, "rings": 40, "noise": 20}


def write_fashion(folder: Path, count: int) -> None:
    """Write the first ``count`` training images of Fashion-MNIST."""
    dataset = load_dataset("fashion-mnist")
    for index in range(count):
        label = dataset.labels[int(dataset.train_labels[index])].replace("/", "-")
        _save(Image.fromarray(dataset.train_images[index, 0].numpy()), folder / label / f"{index:05}.png")


def write_glyphs(folder: Path, count: int) -> None:
    """Write ``count`` letters in the fonts of this machine.

    Raises:
        SystemExit: there are no fonts.
    """
    fonts = sorted(_FONTS.rglob("*.ttf"))
    if not fonts:
        raise SystemExit(f"no fonts in {_FONTS}; install fonts-dejavu, or name other data with --data")
    rng = np.random.default_rng(0)
    for index in range(count):
        letter = _LETTERS[index % len(_LETTERS)]
        font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(rng.integers(22, 36)))
        image = Image.new("L", (48, 48), int(rng.integers(0, 90)))
        place = tuple(24 + rng.integers(-5, 6, 2))
        ImageDraw.Draw(image).text(place, letter, int(rng.integers(150, 256)), font, anchor="mm")
        turned = image.rotate(
            float(rng.uniform(-20, 20)), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0))
        )
        noisy = np.asarray(turned, np.float64) + rng.normal(0, 12, (48, 48))
        _save(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), folder / letter / f"{index:05}.png")


def write_textures(folder: Path, count: int) -> None:
    """Write textures, at most ``count`` of each, as JPEG files between 60 and 110 pixels."""
    rng = np.random.default_rng(0)
    for label, usual in _TEXTURES.items():
        for index in range(min(count, usual)):
            height, width = rng.integers(60, 111, 2)
            shades = _texture(label, int(height), int(width), rng)[:, :, None]
            dark, light = rng.integers(0, 140, 3), rng.integers(110, 256, 3)
            pixels = dark + shades * (light - dark) + rng.normal(0, 18, (height, width, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            _save(image, folder / label / f"{index:05}.jpg")


def write_icons(folder: Path, count: int) -> None:
    """Write Adwaita's icons on grey, at most ``count`` of each kind.

    Raises:
        SystemExit: they are not installed.
    """
    kinds = ("status", "actions", "devices", "mimetypes")
    if not all((_ICONS / kind).is_dir() for kind in kinds):
        raise SystemExit(f"no icons in {_ICONS}; install adwaita-icon-theme, or name other data with --data")
    for kind in kinds:
        for path in sorted((_ICONS / kind).glob("*.png"))[:count]:
            with Image.open(path) as image:
                icon = image.convert("RGBA")
            _save(
                Image.alpha_composite(Image.new("RGBA", icon.size, "#b0b0b0"), icon).convert("L"),
                folder / kind / path.name,
            )


def _texture(label: str, height: int, width: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a texture of 0..1 [height, width]."""
    row, column = np.mgrid[:height, :width].astype(np.float64)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 16)
    across = (row * np.sin(angle) + column * np.cos(angle)) / period
    along = (row * np.cos(angle) - column * np.sin(angle)) / period
    shades: NDArray[np.float64]
    if label == "stripes":
        shades = 0.5 + 0.5 * np.sin(2 * np.pi * across)
    elif label == "checks":
        shades = (np.floor(2 * across) + np.floor(2 * along)) % 2
    elif label == "dots":
        shades = ((across % 1 - 0.5) ** 2 + (along % 1 - 0.5) ** 2 < 0.09).astype(np.float64)
    elif label == "rings":
        centre_row, centre_column = height * rng.uniform(0.2, 0.8), width * rng.uniform(0.2, 0.8)
        distance = np.hypot(row - centre_row, column - centre_column)
        shades = 0.5 + 0.5 * np.sin(2 * np.pi * distance / period)
    else:
        coarse = rng.random((height // 6 + 1, width // 6 + 1))
        shades = np.kron(coarse, np.ones((6, 6)))[:height, :width].astype(np.float64)
    return shades


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


DATA: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "fashion": (write_fashion, 1000),
    "glyphs": (write_glyphs, 600),
    "textures": (write_textures, 240),
    "icons": (write_icons, 240),
}


def main() -> None:
    """Make the data, train the missing runs and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="*", choices=DATA, default=list(DATA))
    parser.add_argument(
        "--arch", choices=("lenet", "alexnet", "resnet"), help="by default what the defaults choose"
    )
    parser.add_argument(
        "--tried", type=int, default=len(TRIED), help="how many of the settings by hand to run"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/small_data"))
    parser.add_argument("--threads", default="1")
    parser.add_argument("--time-limit", help="of each run, as of `foldserve train`")
    args = parser.parse_args()
    rows = []
    for name in args.data:
        folder = args.runs / "data" / name
        if not folder.exists():
            write, count = DATA[name]
            write(folder, count)
        shared = ["--dataset", str(folder), "--threads", args.threads]
        shared += ["--time-limit", args.time_limit] if args.time_limit else []
        arch = args.arch or "default"
        defaults = run(args.runs / f"{name}-{arch}", [*shared, *(["--arch", args.arch] if args.arch else [])])
        # By hand, everything else as it is for Fashion-MNIST, at the size that the defaults chose.
        chosen = load_checkpoint(args.runs / f"{name}-{arch}")
        size = str(chosen.image.height)
        by_hand = []
        for settings in TRIED[: args.tried]:
            flags = [
                word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))
            ]
            words = "-".join(str(value) for value in settings.values())
            flags += ["--arch", chosen.arch, "--image-size", size]
            by_hand.append((run(args.runs / f"{name}-{arch}-{words}", [*shared, *flags]), settings))
        rows.append((name, chosen.arch, size, defaults, by_hand))
    print("\n| data | network, pixels | largest class | defaults: accuracy, macro-F1 | by hand | settings |")
    print("|---|---|---|---|---|---|")
    for name, network, size, defaults, by_hand in rows:
        best, settings = max(by_hand, key=lambda each: each[0]["test_accuracy"]) if by_hand else (None, {})
        shown = f"{best['test_accuracy']:.1%}, {best['test_macro_f1']:.1%}" if best else "not run"
        print(
            f"| {name} | {network}, {size} | {defaults['test_largest_class']:.1%} | "
            f"{defaults['test_accuracy']:.1%}, {defaults['test_macro_f1']:.1%} | {shown} | {settings} |"
        )


def run(run_dir: Path, flags: list[str]) -> dict[str, float]:
    """Train into ``run_dir`` unless that is done, and return the figures."""
    best = run_dir / "best.pt"
    if not best.exists() or "test_accuracy" not in load_checkpoint(best).metrics:
        command = [sys.executable, "-m", "foldserve", "train", *flags, "--run-dir", str(run_dir)]
        subprocess.run(ending_with_us(command), check=True)
    return dict(load_checkpoint(best).metrics)


if __name__ == "__main__":
    main()
