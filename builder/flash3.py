"""Gives FlashAttention 3 of the package fa3-fwd the names under which Diffusers looks for it.

    python builder/flash3.py SITE_PACKAGES

Diffusers asks for a distribution `flash_attn_3` and calls the functions of a module `flash_attn_interface`; fa3-fwd has
the same functions in `fa3_fwd_interface`, without those of training.
"""

from __future__ import annotations

import sys
from pathlib import Path

VERSION = "3.0.0"
_FILES = {
    "flash_attn_interface.py": (
        "from fa3_fwd_interface import flash_attn_func, flash_attn_varlen_func\n\n"
        '__all__ = ["flash_attn_func", "flash_attn_varlen_func"]\n'
    ),
    "flash_attn_3/__init__.py": "",
    f"flash_attn_3-{VERSION}.dist-info/METADATA": (
        f"Metadata-Version: 2.1\nName: flash_attn_3\nVersion: {VERSION}\nSummary: names for fa3-fwd\n"
    ),
    f"flash_attn_3-{VERSION}.dist-info/top_level.txt": "flash_attn_3\n",
    f"flash_attn_3-{VERSION}.dist-info/RECORD": "",
}


def write(site: Path) -> None:
    """Write the names into the folder `site`, where fa3-fwd is installed."""
    for name, text in _FILES.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
