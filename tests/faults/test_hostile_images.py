"""No image, however it is made, ends the worker: each is an image or an InputInvalid, in bounded memory and time.

The full run is `python -m benchmarks.hostile_images --count 20000`; this is a sample of the same generator.
"""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.hostile_images import BOMB_MEGAPIXELS, FORMATS, mutant, outcome, png_bomb, sample
from tests.kits.loopback import takes_at_most
from tests.kits.slow import slow
from worker.base.errors import InputInvalid
from worker.media import decode_image, inputs
from worker.net import Opener

PATH = "reference_image_url"
SAMPLE = 48


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((name, modes[0]) for name, (_, modes, _) in FORMATS.items()),
        *slow(*((name, mode) for name, (_, modes, _) in FORMATS.items() for mode in modes[1:])),
    ],
)
def test_the_undamaged_samples_decode(name: str, mode: str) -> None:
    assert outcome(sample(name, mode)) == "image"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [5, *slow(SAMPLE)])
def test_mutated_images_are_images_or_typed_errors(count: int) -> None:
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda seed: outcome(mutant(seed)[1]), range(count)))
    assert set(outcomes) == {"image", "refused"}


@pytest.mark.parametrize("megapixels", BOMB_MEGAPIXELS)
def test_a_bomb_is_refused_from_its_header(megapixels: int) -> None:
    bomb = png_bomb(megapixels)
    assert len(bomb) < 100_000
    source = "data:image/png;base64," + base64.b64encode(bomb).decode()
    with takes_at_most(10), pytest.raises(InputInvalid, match="more than 33 megapixels"):
        inputs.load_image(source, opener=Opener(), path=PATH)


def test_the_bombs_are_true_images() -> None:
    """A bomb that Pillow could not decode would prove nothing."""
    with Image.open(io.BytesIO(png_bomb(1))) as image:
        image.load()
        assert image.width * image.height == 1_000_000


def test_a_header_that_lies_about_the_size_is_refused() -> None:
    gif = bytearray(sample("gif", "P"))
    gif[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(InputInvalid, match="megapixels"):
        inputs.decode_image(bytes(gif), path=PATH)


def program(folder: Path, body: str) -> Path:
    """A decoder that does `body` in place of decoding."""
    stand_in = folder / "decoder.py"
    stand_in.write_text(f"import os, sys, struct\n{body}\n")
    return stand_in


@pytest.mark.parametrize(
    "body",
    [
        "os.abort()",
        "os.kill(os.getpid(), 9)",
        "sys.exit(3)",
        "print('RGB8')",
        "sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 9, 9))",
        "sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 2**32 - 1, 2**32 - 1))",
        "sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 1, 1) + bytes(4))",
        "sys.stdout.buffer.write(struct.pack('<4sII', b'STOP', 0, 0) + b'\\xff\\xfe')",
    ],
)
def test_a_decoder_that_dies_or_lies_is_a_typed_error(body: str, tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="not an image that can be read"):
        inputs.decode_image(sample("png", "RGB"), path=PATH, program=program(tmp_path, body))


def test_a_decoder_that_hangs_is_cut_off(tmp_path: Path) -> None:
    hangs = program(tmp_path, "import time; time.sleep(60)")
    bounds = replace(inputs.IMAGE_BOUNDS, wall_s=0.3)
    with takes_at_most(20), pytest.raises(InputInvalid, match="takes too long"):
        inputs.decode_image(sample("png", "RGB"), path=PATH, program=hangs, bounds=bounds)


def test_running_out_of_memory_in_the_decoder_says_so(tmp_path: Path) -> None:
    body = (
        f"sys.path.insert(0, {str(Path(decode_image.__file__).parent)!r})\n"
        "import decode_image\n"
        "decode_image.decode = lambda encoded: bytearray(2_000_000_000)\n"
        "decode_image.main()"
    )
    with pytest.raises(InputInvalid, match="too much memory"):
        inputs.decode_image(sample("png", "RGB"), path=PATH, program=program(tmp_path, body))
