"""`python -m docsite.recording FOLDER`: records docs/images/terminal.svg from the real commands.

Runs the demo and some of the README's commands in FOLDER (some minutes the first time; a finished demo is
found again) and writes what they print, colours included, as one SVG without fonts from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from foldserve.demo.children import ending_with_us

OUT = Path(__file__).parents[1] / "docs" / "images" / "terminal.svg"
_WIDTH = 100
_DEMO_ROWS = 10  # the table at the end of the demo, and its verdict


def main(folder: Path) -> int:
    """Record the commands."""
    folder.mkdir(parents=True, exist_ok=True)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=_WIDTH, file=nowhere, force_terminal=True)
        record(console, folder)
    svg = console.export_svg(title="foldserve", code_format=_without_fonts(CONSOLE_SVG_FORMAT))
    OUT.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")
    print(f"recorded {OUT}")
    return 0


def record(console: Console, folder: Path) -> None:
    """Print to ``console`` what the commands print in ``folder``."""
    demo = _run(folder, "demo")
    _show(console, "make demo", "\n".join(["...", *_end_of_demo(demo)]))
    _show(console, "foldserve models list --repository models")
    console.print(_output(folder, "models", "list", "--repository", "models"))
    with tempfile.TemporaryDirectory() as scratch:
        port_file, log = Path(scratch) / "port", Path(scratch) / "log"
        words = [sys.executable, "-m", "foldserve", "serve", "--repository", "models", "--no-metrics"]
        words += ["--port", "0", "--port-file", str(port_file)]
        with (
            log.open("wb") as stream,
            subprocess.Popen(ending_with_us(words), cwd=folder, stdout=stream, stderr=stream) as server,
            contextlib.ExitStack() as ending,
        ):
            ending.callback(server.terminate)
            while "serving on" not in log.read_text():
                if server.poll() is not None:
                    raise RuntimeError(log.read_text())
                time.sleep(0.1)
            _show(console, "foldserve serve --repository models &")
            console.print(Text(re.sub(r":\d{4,5}\b", ":8001", _serving_line(log.read_text()))))
            samples = sorted((folder / "runs" / "lenet" / "report" / "samples").glob("*.png"))[:4]
            names = [str(path.relative_to(folder)) for path in samples]
            address = f"127.0.0.1:{port_file.read_text().strip()}"
            _show(
                console,
                "foldserve classify --model lenet --top-k 2 runs/lenet/report/samples/*.png | head -4",
            )
            output = _output(
                folder, "classify", "--model", "lenet", "--top-k", "2", *names, "--server", address
            )
            console.print(output)


def _end_of_demo(output: str) -> list[str]:
    lines = output.rstrip().splitlines()
    start = next(index for index, line in enumerate(lines) if "test images, on" in line)
    return lines[start : start + _DEMO_ROWS]


def _serving_line(log: str) -> str:
    return next(line for line in log.splitlines() if "serving on" in line)


def _show(console: Console, command: str, output: str = "") -> None:
    console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
    if output:
        console.print(Text.from_ansi(output))


def _output(folder: Path, *words: str) -> Text:
    return Text.from_ansi(_run(folder, *words).rstrip())


def _run(folder: Path, *words: str) -> str:
    environment = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(_WIDTH)}
    command = ending_with_us([sys.executable, "-m", "foldserve", *words])
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def _without_fonts(code_format: str) -> str:
    """Return rich's template without its web fonts: a picture must not ask another host for anything."""
    return re.sub(r"@font-face \{\{.*?\}\}\n", "", code_format, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
