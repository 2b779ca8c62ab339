"""Diffusers finds FlashAttention 3 under the names that `builder.flash3` gives to fa3-fwd."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.utils import import_utils

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


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "fa3_fwd_interface.py").write_text(
        "def flash_attn_func():\n    return 'forward'\n\n\nflash_attn_varlen_func = flash_attn_func\n"
    )
    flash3.write(tmp_path)
    return tmp_path


def test_diffusers_finds_the_package_and_the_functions(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("flash_attn_interface", "fa3_fwd_interface")
    for name in names:  # the real ones are imported where torch is built for CUDA
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(site)
    assert import_utils._is_package_available("flash_attn_3") == (True, flash3.VERSION)
    interface = importlib.import_module("flash_attn_interface")
    for name in names:
        del sys.modules[name]
    assert interface.flash_attn_func() == interface.flash_attn_varlen_func() == "forward"


@pytest.mark.slow  # a new process imports torch and Diffusers
def test_diffusers_uses_what_is_written(site: Path) -> None:
    root = Path(flash3.__file__).parents[1]
    subprocess.run([sys.executable, "-c", CODE], check=True, cwd=root, env={"PYTHONPATH": f"{site}:{root}"})
