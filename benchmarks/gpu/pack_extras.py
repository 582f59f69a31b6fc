"""Packs what `make gpu-check` needs beside the server's own packages, for a machine without a package index.

`python -m benchmarks.gpu.pack_extras OUT` writes OUT/extras.tar.xz with the contents of the wheels of
grpcio-tools and mosec, for Python 3.12 on x86-64, and onnxruntime's `transformers` and `tools` folders.
Unpack it where that Python finds packages. h2load is not in it: `apt-get install nghttp2-client`.
"""

from __future__ import annotations

import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from foldserve.demo.children import ending_with_us

_MOSEC = "mosec==0.9.8"


def main() -> int:
    """Write the archive; return 0."""
    if len(sys.argv) != 2:
        print("usage: python -m benchmarks.gpu.pack_extras OUT", file=sys.stderr)
        return 2
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        wheels, site = Path(name, "wheels"), Path(name, "site")
        platforms = [f"--platform=manylinux_2_{number}_x86_64" for number in (17, 27, 28, 34)]
        platforms += ["--platform=manylinux2014_x86_64", "--platform=any"]
        wanted = [f"grpcio-tools=={version('grpcio-tools')}", _MOSEC]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += [
            "--implementation=cp",
            "--python-version=3.12",
            *platforms,
            "--dest",
            str(wheels),
            *wanted,
        ]
        subprocess.run(ending_with_us(command), check=True)
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(site)
        archive = out / "extras.tar.xz"
        runtime = Path(onnxruntime.__file__).parent
        with lzma.open(archive, "wb", preset=6) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
            tar.add(site, arcname=".")
            for folder in ("transformers", "tools"):
                tar.add(runtime / folder, arcname=f"onnxruntime/{folder}")
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
