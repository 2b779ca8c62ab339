"""Diffusers finds FlashAttention 3 under the names that `builder.flash3` gives to fa3-fwd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from builder import flash3

CODE = """
from diffusers.utils import is_flash_attn_3_available
from diffusers.models import attention_dispatch
assert is_flash_attn_3_available()
assert attention_dispatch._CAN_USE_FLASH_ATTN_3
assert attention_dispatch.flash_attn_3_func() == "forward"
from worker.engine.techniques.attention import _flash_3
assert _flash_3(None) is None
"""


def test_diffusers_finds_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "fa3_fwd_interface.py").write_text(
        "def flash_attn_func():\n    return 'forward'\n\n\nflash_attn_varlen_func = flash_attn_func\n"
    )
    flash3.write(tmp_path)
    root = Path(flash3.__file__).parents[1]
    subprocess.run([sys.executable, "-c", CODE], check=True, cwd=root, env={"PYTHONPATH": f"{tmp_path}:{root}"})
