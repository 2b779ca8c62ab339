"""No image, however it is made, ends the worker: each is an image or an InputInvalid, in bounded memory and time.

The full run is `python -m benchmarks.hostile_images --count 20000`; this is a sample of the same generator.
"""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.hostile_images import BOMB_MEGAPIXELS, FORMATS, mutant, outcome, png_bomb, sample
from tests.kits.loopback import takes_at_most
from worker.base.errors import InputInvalid
from worker.media import decode_image, inputs
from worker.net import Opener

SAMPLE = 160


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, (_, modes, _) in FORMATS.items() for mode in modes])
def test_the_undamaged_samples_decode(name: str, mode: str) -> None:
    assert outcome(sample(name, mode)) == "image"


def test_mutated_images_are_images_or_typed_errors() -> None:
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda seed: outcome(mutant(seed)[1]), range(SAMPLE)))
    assert set(outcomes) == {"image", "refused"}


@pytest.mark.parametrize("megapixels", BOMB_MEGAPIXELS)
def test_a_bomb_is_refused_from_its_header(megapixels: int) -> None:
    bomb = png_bomb(megapixels)
    assert len(bomb) < 100_000
    source = "data:image/png;base64," + base64.b64encode(bomb).decode()
    with takes_at_most(10), pytest.raises(InputInvalid, match="more than 33 megapixels"):
        inputs.load_image(source, opener=Opener(), path="reference_image_url")


def test_the_bombs_are_true_images() -> None:
    """A bomb that Pillow could not decode would prove nothing."""
    with Image.open(io.BytesIO(png_bomb(1))) as image:
        image.load()
        assert image.width * image.height == 1_000_000


def test_a_header_that_lies_about_the_size_is_refused() -> None:
    gif = bytearray(sample("gif", "P"))
    gif[6:10] = b"\xff\xff\xff\xff"
    with pytest.raises(InputInvalid, match="megapixels"):
        inputs._decoded(bytes(gif), "reference_image_url", None)


def run_limited(body: str) -> subprocess.CompletedProcess[bytes]:
    """`body` in a process that limits itself as the decoder does."""
    program = f"import sys; sys.path.insert(0, {str(Path(decode_image.__file__).parent)!r})\n"
    program += f"import decode_image; decode_image._limit_self()\n{body}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, timeout=60, check=False)


def test_the_decoder_cannot_take_a_gigabyte() -> None:
    assert run_limited("bytearray(700_000_000)").returncode == 0
    assert b"MemoryError" in run_limited("bytearray(1_000_000_000)").stderr


def test_the_decoder_cannot_fill_the_disk(tmp_path: Path) -> None:
    target = str(tmp_path / "file")
    run_limited(f"open({target!r}, 'wb').write(bytes(decode_image.MAX_OUTPUT_BYTES + 1000))")
    assert (tmp_path / "file").stat().st_size == decode_image.MAX_OUTPUT_BYTES


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.abort()",
        "import os; os.kill(os.getpid(), 9)",
        "import sys; sys.exit(3)",
        "print('RGB8')",
        "import sys, struct; sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 9, 9))",
        "import sys, struct; sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 2**32 - 1, 2**32 - 1))",
        "import sys, struct; sys.stdout.buffer.write(struct.pack('<4sII', b'RGB8', 1, 1) + bytes(4))",
        "import sys, struct; sys.stdout.buffer.write(struct.pack('<4sII', b'STOP', 0, 0) + b'\\xff\\xfe')",
    ],
)
def test_a_decoder_that_dies_or_lies_is_a_typed_error(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = tmp_path / "decoder.py"
    stand_in.write_text(program)
    monkeypatch.setattr(decode_image, "__file__", str(stand_in))
    with pytest.raises(InputInvalid, match="not an image that can be read"):
        inputs._decoded(sample("png", "RGB"), "reference_image_url", None)


def test_a_decoder_that_hangs_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "decoder.py"
    stand_in.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(decode_image, "__file__", str(stand_in))
    monkeypatch.setattr(inputs, "DECODE_TIMEOUT_S", 0.3)
    with takes_at_most(5), pytest.raises(InputInvalid, match="takes too long"):
        inputs._decoded(sample("png", "RGB"), "reference_image_url", None)


def test_running_out_of_memory_in_the_decoder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = tmp_path / "decoder.py"
    stand_in.write_text(
        f"import sys; sys.path.insert(0, {str(Path(decode_image.__file__).parent)!r})\n"
        "import decode_image\n"
        "decode_image.decode = lambda encoded: bytearray(2_000_000_000)\n"
        "decode_image.main()\n"
    )
    monkeypatch.setattr(decode_image, "__file__", str(stand_in))
    with pytest.raises(InputInvalid, match="too much memory"):
        inputs._decoded(sample("png", "RGB"), "reference_image_url", None)
