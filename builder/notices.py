"""THIRD_PARTY_NOTICES.md: what the image carries beside the worker, and under which licences.

    python -m builder.notices           write it
    python -m builder.notices --check   exit with 1 where it is out of date

Names and versions are those of the lock files, licences those that the installed packages state. The CUDA packages are
not installed on a machine without a GPU: theirs were copied from the metadata of the locked versions into a table.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from builder.audit import locked
from builder.docs.markdown import page, table

TARGET = Path(__file__).resolve().parent.parent / "THIRD_PARTY_NOTICES.md"
INSTALLED = ("requirements-torch.txt", "requirements.txt")
CUDA_LOCK = "requirements-cuda.txt"

# What packages write instead of an SPDX expression.
_SPDX: Mapping[str, str] = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "ISC License": "ISC",
    "3-Clause BSD License": "BSD-3-Clause",
}
# Packages that state a family only; read from the licence files that they bring.
_READ: Mapping[str, str] = {
    **dict.fromkeys(("colorama", "itsdangerous", "jinja2", "mpmath", "prompt-toolkit", "sympy"), "BSD-3-Clause"),
    "pi-heif": "BSD-3-Clause AND LGPL-3.0-or-later",  # with libheif and libde265, which it brings
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "uvloop": "MIT OR Apache-2.0",
}
_EXPRESSION = re.compile(r"(?:[A-Za-z0-9][\w.+-]*)(?: (?:AND|OR|WITH) [A-Za-z0-9][\w.+-]*)*", re.ASCII)
_NVIDIA = "NVIDIA proprietary"
# As their metadata states at the locked versions.
CUDA: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("nvidia-cublas", "nvidia-cuda-cupti", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13"),
            *("nvidia-cufft", "nvidia-cufile", "nvidia-curand", "nvidia-cusolver", "nvidia-cusparse"),
            *("nvidia-cusparselt-cu13", "nvidia-nccl-cu13", "nvidia-nvjitlink", "nvidia-nvshmem-cu13"),
        ),
        _NVIDIA,
    ),
    "cuda-bindings": "Apache-2.0",
    "cuda-pathfinder": "Apache-2.0",
    "cuda-toolkit": "none stated; it holds no files, it only asks for others",
    "fa3-fwd": "Apache-2.0",
    "nvidia-nvtx": "Apache-2.0",
    "triton": "MIT",
}
_INTRODUCTION = """
The worker is licensed under Apache-2.0 ([LICENSE](LICENSE)). This repository carries no code of others. The image
that `make image` builds does: it installs what is listed here. Whoever publishes an image passes all of it on, and
must keep to these licences. The texts are in the image, in `site-packages/*.dist-info` of its virtual environment.
Many wheels carry libraries of their own, such as OpenBLAS in numpy; their licences are there too. This page is a
list, not legal advice.
"""
_FFMPEG = """
imageio-ffmpeg itself is BSD-2-Clause, but the program in it, FFmpeg `{version}` with x264 and x265, is built with
`--enable-gpl` and `--enable-version3`, and so is under the **GNU General Public License, version 3 or later**. The
worker starts it as a program of its own and talks to it through pipes; it links nothing of it. What follows:

- Running the image, also as a service, asks for nothing.
- Who gives the image to others, a public registry included, gives them a GPL program. They must be informed, be given
  the text of the licence, and be able to get the source of this very build and of the libraries in it;
  `ffmpeg -version` prints its exact version and configuration.
- To leave it out, delete `imageio_ffmpeg/binaries` in the stage `packages` of the Dockerfile (deleted later it stays
  in a layer), install another ffmpeg in the last stage and name it with `IMAGEIO_FFMPEG_EXE`. The worker encodes with
  `libx264`, which is GPL in every ffmpeg, unless you hold a commercial licence of x264.

H.264 is covered by patents in some countries, whichever program writes it.
"""
_CUDA_TEXT = """
Only in an image with torch's CUDA build. Those marked as proprietary are under NVIDIA's end user licence agreements,
such as that of the CUDA Toolkit; each package has the text of its own. Whether and how they may be passed on is said
there: read it before you publish an image.
"""
_REST = """
- **The base**, `python:3.11-slim-bookworm` where nothing else was asked for: Debian's packages, each with its licence
  in `/usr/share/doc/*/copyright`, and Python under the PSF licence.
- **gcc and the C library's headers** (Debian's packages), where torch's CUDA build is installed and the image was not
  built with `WITH_COMPILER=0`. gcc is under the GPL, version 3, with its runtime exception.
- **SageAttention** (Apache-2.0), where the image was built with `builder/image.sh --sage`.
- **Wan 2.2's weights** (Apache-2.0) are not in the image and not in this repository: the worker downloads them to
  your volume. An image that you build with weights in it carries them.
- **LoRAs** that requests name come under their own licences: see the page of each.
- **The default negative prompt** is Wan's own text, from its repository (Apache-2.0).
- **The demo model** is made on the spot from random numbers.
"""


def licence_of(found: Distribution) -> str:
    """The SPDX expression of a package. Raises ValueError, naming the package, where its metadata gives none."""
    metadata: Any = found.metadata  # a message, whose protocol has no `get`
    name = metadata["Name"].lower().replace("_", "-")
    classifiers = [entry.rpartition(" :: ")[2] for entry in metadata.get_all("Classifier") or [] if "License" in entry]
    stated = [_READ.get(name), metadata.get("License-Expression"), metadata.get("License"), *classifiers]
    for text in stated:
        expression = _SPDX.get(text, text) if text else ""
        if _EXPRESSION.fullmatch(expression) and expression not in ("BSD", "UNKNOWN"):
            return expression
    raise ValueError(f"{name}: its metadata names no licence: read its licence file and add it to builder/notices.py")


def has_licence_file(found: Distribution) -> bool:
    return any(re.match(r"(?i)licen[sc]e|copying|notice", path.name) for path in found.files or ())


def packages() -> list[tuple[str, str, Distribution]]:
    """Name, version and installed distribution of every package of the image but the CUDA ones.

    Raises ValueError where one is not installed at its locked version.
    """
    pins, _ = locked(INSTALLED)
    rows = []
    for name, version in sorted(pins.items()):
        try:
            found = distribution(name)
        except PackageNotFoundError as failure:
            raise ValueError(f"{name} is locked but not installed: run make setup-dev") from failure
        if found.version.split("+")[0] != version:
            raise ValueError(f"{name}: {found.version} is installed, {version} is locked: run make setup-dev")
        rows.append((name, version, found))
    return rows


def cuda_rows(pins: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Raises ValueError where the table and the lock name different packages."""
    if set(pins) != set(CUDA):
        different = ", ".join(sorted(set(pins) ^ set(CUDA)))
        raise ValueError(f"builder/notices.py and {CUDA_LOCK} differ in {different}: correct the table CUDA")
    return [(f"`{name}`", version, CUDA[name]) for name, version in sorted(pins.items())]


def ffmpeg_version() -> str:
    """The version of imageio-ffmpeg's program. Raises ValueError where it is another build than the page describes."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-version"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    missing = [
        flag
        for flag in ("--enable-gpl", "--enable-version3", "--enable-libx264", "--enable-libx265")
        if flag not in text
    ]
    if missing or "--enable-nonfree" in text:
        raise ValueError(f"ffmpeg is built otherwise ({', '.join(missing)}): its licence has to be looked at again")
    return text.split()[2]


def render() -> str:
    rows, bare, shared = [], [], []
    for name, version, found in packages():
        licence = licence_of(found)
        rows.append((f"`{name}`", version, licence))
        if not has_licence_file(found):
            bare.append(f"`{name}`")
        if re.search(r"GPL|MPL", licence):
            shared.append(f"`{name}` ({licence})")
    cuda, _ = locked((CUDA_LOCK,))
    heads = ("Package", "Version", "Licence")
    return page(
        "the lock files and the installed packages",
        "# Third-party notices",
        _INTRODUCTION,
        "## ffmpeg",
        _FFMPEG.format(version=ffmpeg_version()),
        "## CUDA libraries",
        _CUDA_TEXT,
        table(heads, cuda_rows(cuda)),
        "## Python packages",
        f"Changed files of these may be passed on only under the same licence: {', '.join(shared)}. They are used\n"
        f"unchanged. Without a licence file in the wheel: {', '.join(bare)}; see their\n"
        "project pages.",
        table(heads, rows),
        "## Beside the packages",
        _REST,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.notices", description="Write THIRD_PARTY_NOTICES.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where it is out of date")
    options = parser.parse_args(arguments)
    try:
        text = render()
    except ValueError as failure:
        print(failure, file=sys.stderr)
        return 1
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print(f"{TARGET.name} is out of date: run make docs", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
