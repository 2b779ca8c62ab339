"""Convert a model once into what loads fastest, beside the originals or instead of them.

    python -m builder.prepare --model i2v --dtype bf16
    python -m builder.prepare --model t2v --dtype fp8 --replace

The model is found, or downloaded, as a worker would do it (MODEL_CACHE_DIR, HF_TOKEN and the other variables count).
The worker takes the prepared weights at its next start. `--replace` deletes the originals once the new ones are
whole: no worker may be loading them at that time.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub.utils.tqdm import tqdm

from worker import folders, log, settings
from worker.errors import ModelUnavailable, SettingsError
from worker.weights import ModelFolder, ensure, locate
from worker.weights.acquire import lock_path
from worker.weights.failures import TRANSLATED, unavailable
from worker.weights.lock import held
from worker.weights.places import home, prepared_folder
from worker.weights.record import Dtype

logger = logging.getLogger("worker.prepare")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the prepared weights are there, 1 when they could not be made."""
    options = _parser().parse_args(arguments)
    try:
        configured = settings.load()
    except SettingsError as failure:
        print(failure, file=sys.stderr)
        return 1
    log.configure(level=configured.log_level, layout=configured.log_format, secrets=configured.secret_values())
    names = {"i2v": configured.i2v_model_id, "t2v": configured.t2v_model_id, "5b": configured.ti2v_model_id}
    model_id = names.get(options.model, options.model)
    cache_dir = folders.model_cache_dir(configured)
    token = configured.hf_token.get_secret_value() if configured.hf_token is not None else None
    try:
        prepared = prepare_model(
            model_id, options.dtype, cache_dir=cache_dir, out=options.out, token=token, replace=options.replace
        )
    except ModelUnavailable as failure:
        print(f"not prepared: {failure}", file=sys.stderr)
        return 1
    print(f"prepared: {prepared.path}")
    return 0


def prepare_model(
    model_id: str,
    dtype: Dtype,
    *,
    cache_dir: Path,
    out: Path | None = None,
    token: str | None = None,
    replace: bool = False,
) -> ModelFolder:
    """Prepared weights of a model, made unless they are there. `out` is the model cache that receives them.

    Raises ModelUnavailable.
    """
    target_cache = out if out is not None else cache_dir
    done = locate(model_id, cache_dir=target_cache, prepared=dtype)
    if done is not None and done.dtype == dtype:
        print(f"{done.repo} is there in {dtype} already")
        return done
    # Imported late: torch takes seconds, and --help needs none of it.
    from worker.weights.convert import prepare

    original = ensure(model_id, cache_dir=cache_dir, token=token, prepared=None)
    destination = prepared_folder(original, dtype, target_cache)
    try:
        with held(lock_path(target_cache, original.repo), doing=f"preparing {original.repo}"):
            if not destination.exists():
                with tqdm(unit="B", unit_scale=True, desc=f"{original.repo} to {dtype}") as bar:

                    def show(written: int, total: int) -> None:
                        bar.total = total
                        bar.update(written - bar.n)

                    prepare(original, dtype, destination, cache_dir=target_cache, on_bytes=show)
            before, after = _gigabytes(original.path), _gigabytes(destination)
            print(f"{original.repo}: {before:.2f} GB before, {after:.2f} GB after")
            if replace:
                _remove_original(original, cache_dir)
    except TRANSLATED as failure:
        raise unavailable(failure, original.repo, has_token=token is not None) from failure
    return ModelFolder(destination, original.repo, original.revision, "prepared", dtype)


def _remove_original(original: ModelFolder, cache_dir: Path) -> None:
    """Delete the originals where they are the cache's own. Files that the prepared weights share stay, as links."""
    if original.source not in ("cache", "hub"):
        logger.warning("the originals are not in MODEL_CACHE_DIR and are kept")
        return
    folder = original.path
    # The hub client's layout: the snapshot holds links only, the bytes are in the blobs beside it.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        folder = folder.parent.parent
    shutil.rmtree(folder)
    rest = home(cache_dir, original.repo)
    print(f"deleted the originals; {rest.name} holds what is left")


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m builder.prepare", description="Convert a model once into what loads fastest."
    )
    parser.add_argument("--model", required=True, help="i2v, t2v, 5b, a model id, or the path of a folder")
    parser.add_argument("--dtype", required=True, choices=("bf16", "fp8"), help="what the experts are stored as")
    parser.add_argument("--replace", action="store_true", help="delete the originals afterwards")
    parser.add_argument("--out", type=Path, help="the model cache to write to (default: MODEL_CACHE_DIR)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
