"""What runs JavaScript in tests, each where it is: Node, and Deno, which the tests' own packages have."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

NODE = shutil.which("node")
DENO = shutil.which("deno", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1"}
