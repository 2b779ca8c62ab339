"""How long a prompt alone takes on the demo model, from the shell to the file, and whether the clip shows it.

    python -m benchmarks.first_clip [--prompts 5]

Each is `videogen generate --prompt ...` with all defaults, in a process of its own; `training.judging` reads colour and
motion from the file. Prints the medians and writes `benchmarks/results/first-clip-DATE.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from benchmarks import reporting
from benchmarks.quality_cases import asked_scenes
from benchmarks.reporting import RESULTS
from training import scenes as writing
from training.judging import judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    seconds, colours, motions = [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "MODEL_PROFILE": "demo", "STATE_DIR": f"{name}/state"}
        for number, scene in enumerate(asked_scenes(options.prompts)):
            target = Path(name) / f"{number}.mp4"
            prompt = writing.sentence(scene, np.random.default_rng(number))
            command = [sys.executable, "-m", "worker.cli", "generate", "--prompt", prompt, "--out", str(target)]
            began = time.perf_counter()
            subprocess.run(command, env=environment, check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
            with av.open(str(target)) as container:
                verdict = judge(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))
            colours += verdict.colour == scene.colour
            motions += verdict.motion == scene.motion
    found = {
        "prompts": options.prompts,
        "seconds": round(statistics.median(seconds), 1),
        "slowest": round(max(seconds), 1),
        "right_colour": colours,
        "right_motion": motions,
    }
    print(json.dumps(found, indent=2))
    reporting.write(options.output, "first-clip", found, "torch")


if __name__ == "__main__":
    main()
