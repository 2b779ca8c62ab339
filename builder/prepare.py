"""Convert a model once into what loads fastest, beside the originals or instead of them.

    python -m builder.prepare --model i2v --dtype bf16
    python -m builder.prepare --model t2v --dtype fp8 --replace
    python -m builder.prepare --model t2v --dtype bf16 --turbo

The model is found, or downloaded, as a worker would do it (MODEL_CACHE_DIR, HF_TOKEN and the other variables count).
The worker takes the prepared weights at its next start. `--replace` deletes the originals once the new ones are
whole: no worker may be loading them at that time.

`--turbo` makes another folder beside: the experts with the distilled LoRAs of turbo fused in, each expert its own. The
LoRAs are fetched into the cache, and stay for `turbo_variant: hybrid`. It can be made of bf16 weights as well as of the
originals. A worker that finds such a folder at its start serves turbo from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.utils.tqdm import tqdm

from worker.base import folders, log, settings
from worker.base.errors import ModelUnavailable, SettingsError
from worker.base.locks import held
from worker.request import CATALOGUE
from worker.request.catalogue import DistilledLoras
from worker.weights import ModelCache, ModelFolder
from worker.weights.ensure import ensure
from worker.weights.folder import fused
from worker.weights.folder.record import Dtype
from worker.weights.hub.failures import TRANSLATED, unavailable

logger = logging.getLogger("worker.jobs.prepare")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when the prepared weights are there, 1 when they could not be made."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.turbo and options.replace:
        parser.error(
            "--replace goes with the plain prepared weights: what --turbo makes does not replace the originals"
        )
    if options.turbo and not distilled_for(options.model):
        parser.error("--turbo needs --model i2v or t2v: there are no distilled LoRAs for another model")
    try:
        configured = settings.load()
    except SettingsError as failure:
        print(failure, file=sys.stderr)
        return 1
    log.configure(level=configured.log_level, layout=configured.log_format, secrets=configured.secret_values())
    model_id = configured.model_ids.get(options.model, options.model)
    cache = ModelCache(folders.model_cache_dir(configured), token=configured.hub_token)
    try:
        if options.turbo:
            sets = distilled_for(options.model)
            prepared = prepare_turbo(cache, model_id, options.dtype, sets, out=options.out)
        else:
            prepared = prepare_model(cache, model_id, options.dtype, out=options.out, replace=options.replace)
    except ModelUnavailable as failure:
        print(f"not prepared: {failure}", file=sys.stderr)
        return 1
    print(f"prepared: {prepared.path}")
    return 0


def prepare_model(
    cache: ModelCache, model_id: str, dtype: Dtype, *, out: Path | None = None, replace: bool = False
) -> ModelFolder:
    """Prepared weights of a model, made unless they exist. `out` is the model cache that receives them.

    Raises ModelUnavailable.
    """
    target = dataclasses.replace(cache, folder=out) if out is not None else cache
    done = target.locate(model_id, prepared=dtype)
    if done is not None and done.dtype == dtype:
        print(f"{done.repo} is there in {dtype} already")
        return done
    # Imported late: torch takes seconds, and --help needs none of it.
    from worker.weights.convert import prepare

    original = ensure(cache, model_id, prepared=None)
    destination = target.prepared_folder(original, dtype)
    try:
        with held(target.lock_path(original.repo), doing=f"preparing {original.repo}"):
            if not destination.exists():
                with _shown(f"{original.repo} to {dtype}") as show:
                    prepare(original, dtype, destination, cache=target, on_bytes=show)
            before, after = _gigabytes(original.path), _gigabytes(destination)
            print(f"{original.repo}: {before:.2f} GB before, {after:.2f} GB after")
            if replace:
                _remove_original(original, cache)
    except TRANSLATED as failure:
        raise unavailable(failure, original.repo, has_token=cache.token is not None) from failure
    return ModelFolder(destination, original.repo, original.revision, "prepared", dtype)


def distilled_for(model: str) -> tuple[DistilledLoras, ...]:
    """The distilled LoRAs of `i2v` or `t2v`, none for anything else."""
    return next((spec.distilled for spec in CATALOGUE if spec.key == model), ())


def prepare_turbo(
    cache: ModelCache, model_id: str, dtype: Dtype, sets: Sequence[DistilledLoras], *, out: Path | None = None
) -> ModelFolder:
    """Prepared weights with the first of `sets` that can be fetched fused in, made unless they exist.

    Raises ModelUnavailable.
    """
    target = dataclasses.replace(cache, folder=out) if out is not None else cache
    done = fused.find(target, model_id, dtype)
    if done is not None and done.dtype == dtype:
        print(f"{done.repo} is there in {dtype} with its distilled LoRAs already")
        return done
    from worker.net import Opener
    from worker.weights.convert import Fusion, prepare
    from worker.weights.loras import LoraStore, fuse

    store = LoraStore(target.folder, Opener(), token=cache.token, endpoint=cache.endpoint)
    files = store.fetch_distilled(sets, path="--turbo")
    by_expert = {"transformer": files.high.path, "transformer_2": files.low.path}
    fusion = Fusion(files.repo, lambda expert, shapes: fuse.changes(by_expert[expert], shapes))
    stored = [cache.locate(model_id, prepared=wanted) for wanted in (None, "bf16")]
    usable = [folder for folder in stored if folder is not None and folder.dtype != "fp8"]
    original = usable[0] if usable else ensure(cache, model_id, prepared=None)
    destination = fused.folder_for(target, original, dtype)
    try:
        with held(target.lock_path(original.repo), doing=f"preparing {original.repo}"):
            if not destination.exists():
                with _shown(f"{original.repo} to {dtype}, with {files.repo}") as show:
                    prepare(original, dtype, destination, cache=target, fusion=fusion, on_bytes=show)
    except TRANSLATED as failure:
        raise unavailable(failure, original.repo, has_token=cache.token is not None) from failure
    print(f"{original.repo}: {_gigabytes(destination):.2f} GB with {files.repo} fused in")
    return ModelFolder(destination, original.repo, original.revision, "prepared", dtype)


@contextmanager
def _shown(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar: a function of the bytes that are written and of all bytes."""
    with tqdm(unit="B", unit_scale=True, desc=doing) as bar:  # type: ignore[no-untyped-call]

        def show(written: int, total: int) -> None:
            bar.total = total
            bar.update(written - bar.n)

        yield show


def _remove_original(original: ModelFolder, cache: ModelCache) -> None:
    """Delete the originals where they are the cache's own. Files that the prepared weights share stay, as links."""
    if original.source not in ("cache", "hub"):
        logger.warning("the originals are not in MODEL_CACHE_DIR and are kept")
        return
    folder = original.path
    # The hub client's layout: the snapshot holds links only, the bytes are in the blobs beside it.
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        folder = folder.parent.parent
    shutil.rmtree(folder)
    rest = cache.home(original.repo)
    print(f"deleted the originals; {rest.name} holds what is left")


def _gigabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m builder.prepare", description="Convert a model once into what loads fastest."
    )
    parser.add_argument("--model", required=True, help="i2v, t2v, 5b, a model id, or the path of a folder")
    parser.add_argument("--dtype", required=True, choices=("bf16", "fp8"), help="what the experts are stored as")
    parser.add_argument("--turbo", action="store_true", help="with the distilled LoRAs of turbo fused in (i2v, t2v)")
    parser.add_argument("--replace", action="store_true", help="delete the originals afterwards")
    parser.add_argument("--out", type=Path, help="the model cache to write to (default: MODEL_CACHE_DIR)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
