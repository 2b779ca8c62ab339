"""The VideoGen worker: a RunPod serverless job becomes Wan 2.2 videos, which are stored and reported."""

import sys
from importlib.util import find_spec

# Whatever is started first, `python -m worker.cli` or handler.py, passes here: a sentence instead of a traceback.
if sys.version_info < (3, 11) or find_spec("pydantic") is None:
    sys.exit(
        f"error: {sys.executable} does not have the packages of this project: run make setup first, "
        "then use .venv/bin/videogen, or .venv/bin/python"
    )
