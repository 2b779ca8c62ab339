"""Feeds LoRA files with mutated headers to the worker: every one must be put on the model or be refused, at once.

    python -m benchmarks.hostile_loras --count 10000

Each file has one of the forms of docs/lora-formats.md for the small built-in model, with a header that is damaged in
one of several ways, from a seed that reproduces it. Each is judged as one that was fetched, read, held against the
model and, where it passes, put on and taken off. Reports counts by outcome, the slowest file in seconds of CPU time and
the most memory; exits with 1 at the first file that takes longer than a second, or ends in anything but an error that
is the caller's.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits import lora_kit
from tests.kits.lora_forms import FORMS
from worker.base.errors import InputInvalid, Unsupported
from worker.engine.models.components import Components
from worker.engine.techniques import lora
from worker.weights.loras.header import check_safetensors

LIMIT_S = 1.0
Header = dict[str, Any]
_SIZES: tuple[Any, ...] = (0, 1, -1, 3, 2**31, 2**31 + 1, 2**63, 2**64, 10**400, 1.5, True, "1", None, [])
_DTYPES = ("F64", "F32", "BF16", "F8_E4M3", "F8_E8M0", "F4", "I64", "BOOL", "U8", "C64", "", None, 7)
_PARTS = (
    ".lora_A",
    ".lora_down.weight",
    ".alpha",
    ".lokr_w1",
    ".hada_w1_a",
    ".diff_b",
    ".dora_scale",
    ".x",
    "_blocks_",
)
_CONFIGS = ('{"lora_alpha": 1e999}', '{"alpha_pattern": {"a": NaN}}', "[" * 5000, '{"lora_alpha": 1' + "0" * 5000 + "}")


def _dtype(header: Header, rng: random.Random) -> None:
    header[rng.choice(list(header))]["dtype"] = rng.choice(_DTYPES)


def _shape(header: Header, rng: random.Random) -> None:
    tensor = header[rng.choice(list(header))]
    shapes = (
        [1] * rng.choice((6, 70_000)),
        [rng.choice(_SIZES) for _ in range(rng.randint(0, 6))],
        tensor["shape"][::-1],
    )
    tensor["shape"] = rng.choice(shapes)


def _same_bytes_in_more_dimensions(header: Header, rng: random.Random) -> None:
    tensor = header[rng.choice(list(header))]
    tensor["shape"] = [*tensor["shape"], *[1] * rng.randint(1, 6)]


def _offsets(header: Header, rng: random.Random) -> None:
    tensor = header[rng.choice(list(header))]
    tensor["data_offsets"] = [rng.choice((*_SIZES, *tensor["data_offsets"])) for _ in range(rng.randint(1, 3))]


def _key(header: Header, rng: random.Random) -> None:
    key = rng.choice(list(header))
    part = rng.choice(_PARTS)
    other = rng.choice((key + part, part + key, part * rng.choice((2, 20_000)), key.replace("blocks", part), key[:-1]))
    header[other] = header.pop(key)


def _prefix(header: Header, rng: random.Random) -> None:
    prefix = rng.choice(
        ("transformer_2.", "base_model.model.", "model." * 5_000, "lora_unet_" * 2_000, "\x00", "\ud800")
    )
    for key in rng.sample(list(header), rng.randint(1, min(100, len(header)))):
        header[prefix + key] = header.pop(key)


def _lost(header: Header, rng: random.Random) -> None:
    start, end = header.pop(rng.choice(list(header)))["data_offsets"]
    for tensor in header.values():
        tensor["data_offsets"] = [each - (end - start) if each >= end else each for each in tensor["data_offsets"]]


def _many(header: Header, rng: random.Random) -> None:
    end = max(tensor["data_offsets"][1] for tensor in header.values())
    suffix = rng.choice((".lora_A.weight", ".alpha", ".lokr_w2", ""))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    for number in range(rng.choice((*[100] * 16, 9_000, 9_000, 11_000, 60_000))):
        header[f"blocks.{number}.attn1.to_q{suffix}"] = dict(empty)


def _metadata(header: Header, rng: random.Random) -> None:
    header["__metadata__"] = {"lora_adapter_metadata": rng.choice(_CONFIGS)}


MUTATIONS: tuple[Callable[[Header, random.Random], None], ...] = (
    *(_lost, _many, _same_bytes_in_more_dimensions, _key, _prefix, _dtype, _shape, _offsets),
)


def _damaged(text: bytearray, rng: random.Random) -> None:
    """Bytes of the header changed, cut out or repeated."""
    at = rng.randrange(len(text))
    if (way := rng.randrange(3)) == 0:
        text[at] = rng.randrange(256)
    elif way == 1:
        del text[at : at + rng.randint(1, 40)]
    else:
        text[at:at] = text[at : at + rng.randint(1, 40)] * rng.choice((1, 3, 10_000))


def good_files(components: Components) -> tuple[bytes, ...]:
    """One of each form for the model."""
    return tuple(safetensors.torch.save(form.write(form.key, components.transformer).tensors) for form in FORMS)


def mutant(seed: int, good: Sequence[bytes]) -> tuple[str, bytes]:
    """The name and the bytes of file number `seed`. Neighbouring seeds are of different forms."""
    rng = random.Random(seed)
    content = good[seed % len(good)]
    length = int.from_bytes(content[:8], "little")
    header: Header = json.loads(content[8 : 8 + length])
    ways = sorted(rng.sample(MUTATIONS, rng.randint(0, 2)), key=MUTATIONS.index)
    body = content[8 + length :]
    for way in ways:
        way(header, rng)
        if way is _lost:
            body = body[: max((tensor["data_offsets"][1] for tensor in header.values()), default=0)]
    if rng.random() < 0.1:
        _metadata(header, rng)
    text = bytearray(json.dumps(header).encode())
    if not ways or rng.random() < 0.2:
        _damaged(text, rng)
    claimed = len(text) if rng.random() < 0.95 else rng.choice((0, 1, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1))
    name = "+".join(way.__name__.strip("_") for way in ways) or "bytes"
    return f"{name} seed {seed}", claimed.to_bytes(8, "little") + bytes(text) + body


def outcome(content: bytes, components: Components, folder: Path) -> str:
    """`applied`, or the name of the error, which is one of those that are the caller's."""
    file = folder / "lora.safetensors"
    file.write_bytes(content)
    try:
        check_safetensors(file, path="loras[0].source")
        with lora.applied(components, [lora_kit.adapter(file)]):
            return "applied"
    except (InputInvalid, Unsupported) as refusal:
        return type(refusal).__name__
    finally:
        lora.contents.clear()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    slowest = (0.0, "")
    with tempfile.TemporaryDirectory() as folder:
        components = lora_kit.load(Path(folder) / "t2v")
        good = good_files(components)
        for seed in range(asked.first, asked.first + asked.count):
            name, content = mutant(seed, good)
            began = time.process_time()
            counts[outcome(content, components, Path(folder))] += 1
            slowest = max(slowest, (time.process_time() - began, name))
            if slowest[0] > LIMIT_S:
                print(f"{slowest[1]} took {slowest[0]:.2f} s")
                return 1
    for result, count in counts.most_common():
        print(f"{result:14} {count}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    found = {"count": asked.count, "first": asked.first, **counts, "slowest_cpu_s": round(slowest[0], 3)}
    reporting.write(asked.output, "hostile-loras", found)
    print(f"{asked.count} files, {peak_mb:.0f} MB of memory, the slowest {slowest[0]:.2f} s of CPU time ({slowest[1]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
