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
from worker.weights import ModelFolder, locate
from worker.weights.ensure import ensure, lock_path
from worker.weights.folder import fused
from worker.weights.folder.places import home, prepared_folder
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
    names = {"i2v": configured.i2v_model_id, "t2v": configured.t2v_model_id, "5b": configured.ti2v_model_id}
    model_id = names.get(options.model, options.model)
    cache_dir = folders.model_cache_dir(configured)
    token = configured.hf_token.get_secret_value() if configured.hf_token is not None else None
    try:
        if options.turbo:
            sets = distilled_for(options.model)
            prepared = prepare_turbo(model_id, options.dtype, sets, cache_dir=cache_dir, out=options.out, token=token)
        else:
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
                with _shown(f"{original.repo} to {dtype}") as show:
                    prepare(original, dtype, destination, cache_dir=target_cache, on_bytes=show)
            before, after = _gigabytes(original.path), _gigabytes(destination)
            print(f"{original.repo}: {before:.2f} GB before, {after:.2f} GB after")
            if replace:
                _remove_original(original, cache_dir)
    except TRANSLATED as failure:
        raise unavailable(failure, original.repo, has_token=token is not None) from failure
    return ModelFolder(destination, original.repo, original.revision, "prepared", dtype)


def distilled_for(model: str) -> tuple[DistilledLoras, ...]:
    """The distilled LoRAs of `i2v` or `t2v`, none for anything else."""
    return next((spec.distilled for spec in CATALOGUE if spec.key == model), ())


def prepare_turbo(
    model_id: str,
    dtype: Dtype,
    sets: Sequence[DistilledLoras],
    *,
    cache_dir: Path,
    out: Path | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> ModelFolder:
    """Prepared weights with the first of `sets` that is available fused in, made unless they exist.

    `endpoint` is the hub that has the LoRAs, the hub client's own where None. Raises ModelUnavailable.
    """
    target_cache = out if out is not None else cache_dir
    done = fused.find(model_id, cache_dir=target_cache, prepared=dtype)
    if done is not None and done.dtype == dtype:
        print(f"{done.repo} is there in {dtype} with its distilled LoRAs already")
        return done
    from worker.net import Opener
    from worker.weights.convert import Fusion, prepare
    from worker.weights.loras import LoraStore, fuse

    files = LoraStore(target_cache, Opener(), token=token, endpoint=endpoint).fetch_distilled(sets, path="--turbo")
    by_expert = {"transformer": files.high.path, "transformer_2": files.low.path}
    fusion = Fusion(files.repo, lambda expert, shapes: fuse.changes(by_expert[expert], shapes))
    lying = [locate(model_id, cache_dir=cache_dir, prepared=wanted) for wanted in (None, "bf16")]
    usable = [folder for folder in lying if folder is not None and folder.dtype != "fp8"]
    original = usable[0] if usable else ensure(model_id, cache_dir=cache_dir, token=token, prepared=None)
    destination = fused.folder_for(original, dtype, target_cache)
    try:
        with held(lock_path(target_cache, original.repo), doing=f"preparing {original.repo}"):
            if not destination.exists():
                with _shown(f"{original.repo} to {dtype}, with {files.repo}") as show:
                    prepare(original, dtype, destination, cache_dir=target_cache, fusion=fusion, on_bytes=show)
    except TRANSLATED as failure:
        raise unavailable(failure, original.repo, has_token=token is not None) from failure
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
    parser.add_argument("--turbo", action="store_true", help="with the distilled LoRAs of turbo fused in (i2v, t2v)")
    parser.add_argument("--replace", action="store_true", help="delete the originals afterwards")
    parser.add_argument("--out", type=Path, help="the model cache to write to (default: MODEL_CACHE_DIR)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
