"""A LoRA of a request becomes a verified safetensors file on the local disk.

A `source` is one of three:

    https://example.com/style.safetensors      fetched like every URL of a request
    OWNER/REPO/PATH/style.safetensors          a file of a repository on the hub, its branch main
    style.safetensors                          a file that the operator put into {MODEL_CACHE_DIR}/loras

What is fetched is judged by its bytes, not by its name: a pickle can run code when it is opened, and is never opened.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from worker.base.errors import InputFailed, InputInvalid, InvalidRequest, ModelUnavailable, Unsupported
from worker.base.folders import model_cache_dir
from worker.base.settings import Settings
from worker.net import Limits, Opener
from worker.net.opener import LORA_LIMITS, MEGABYTE
from worker.request.catalogue import DistilledLoras
from worker.weights.hub.transfer import Retries
from worker.weights.loras.cache import MAX_BYTES, LoraCache
from worker.weights.loras.from_hub import LoraHub
from worker.weights.loras.header import check_safetensors

logger = logging.getLogger(__name__)

# What was fetched from a URL is used again for so long without asking its server.
URL_FRESH_S = 900.0
# Rank 64 on every layer of an A14B expert is 307 million numbers, published in fp32 too. Whatever LORA_MAX_BYTES says.
DISTILLED_MAX_BYTES = 2_000 * MEGABYTE
_LISTED = 10
# Stable Video Infinity 2.0 Pro for the image-to-video experts, high and low: an operator's own files, those of its
# authors, and their conversion to fp16.
SVI = (
    ("svi-high.safetensors", "svi-low.safetensors"),
    (
        "SVI_Wan2.2-I2V-A14B_high_noise_lora_v2.0_pro.safetensors",
        "SVI_Wan2.2-I2V-A14B_low_noise_lora_v2.0_pro.safetensors",
    ),
    (
        "SVI_v2_PRO_Wan2.2-I2V-A14B_HIGH_lora_rank_128_fp16.safetensors",
        "SVI_v2_PRO_Wan2.2-I2V-A14B_LOW_lora_rank_128_fp16.safetensors",
    ),
)
_HUB_FILE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})/(?P<file>[^\\\x00-\x1f]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A safetensors file whose header was read. `name` is short and may be logged."""

    path: Path
    sha256: str
    name: str


@dataclass(frozen=True, slots=True)
class DistilledFiles:
    """The distilled LoRAs of both experts, from one repository."""

    repo: str
    high: LoraFile
    low: LoraFile


class LoraStore:
    """Finds, fetches and keeps LoRAs.

    `cache_dir`: the model cache. `token`: for the hub, at `endpoint`. `max_cache_bytes`: of what was fetched. `limits`:
    of one LoRA that is fetched; what the operator put on the volume has any size. `distilled_max_bytes`: of one that
    turbo needs, in their place.
    """

    def __init__(
        self,
        cache_dir: Path,
        opener: Opener,
        *,
        token: str | None,
        endpoint: str | None = None,
        max_cache_bytes: int = MAX_BYTES,
        limits: Limits = LORA_LIMITS,
        distilled_max_bytes: int = DISTILLED_MAX_BYTES,
        retries: Retries | None = None,
    ) -> None:
        self._folder = cache_dir / "loras"
        self._cache = LoraCache(self._folder / ".cache", max_bytes=max_cache_bytes)
        self._opener = opener
        self._hub = LoraHub(token=token, endpoint=endpoint, retries=retries)
        self._limits = limits
        self._distilled_max_bytes = distilled_max_bytes

    @classmethod
    def of(cls, settings: Settings, opener: Opener) -> LoraStore:
        limits = replace(LORA_LIMITS, max_bytes=settings.lora_max_bytes)
        return cls(model_cache_dir(settings), opener, token=settings.hub_token, limits=limits)

    def fetch(self, source: str, *, path: str, stop: threading.Event | None = None) -> LoraFile:
        """The file that `source` names; blocks while it is fetched.

        `path` is the field that errors name. Raises InvalidRequest for a source of no known form, InputBlocked and
        InputFailed for URLs, InputInvalid for what is no safetensors file, Unsupported for a file that neither the
        operator's folder nor the hub has, ModelUnavailable where the hub or the disk fails, Cancelled on `stop`.
        """
        source = source.strip()
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", source):
            return self._from_url(source, path, stop)
        if "/" not in source:
            return self._from_folder(source, path)
        found = _HUB_FILE.fullmatch(source)
        if found is None or any(part in ("", ".", "..") for part in found["file"].split("/")):
            raise InvalidRequest(
                "names no LoRA: send an https URL, OWNER/REPO/FILE.safetensors of the hub, or the name of a file that "
                "is on the worker",
                path=path,
            )
        return self._from_hub(found["repo"], found["file"], path, stop)

    def fetch_distilled(
        self, sets: Sequence[DistilledLoras], *, path: str, stop: threading.Event | None = None
    ) -> DistilledFiles:
        """The first of `sets` that is in the cache, else the first that can be fetched.

        What was fetched once is not fetched again: these files are named with their version. Raises ModelUnavailable
        and Cancelled.
        """
        for wanted in sets:
            kept = [self._kept(wanted.repo, file) for file in (wanted.high, wanted.low)]
            if kept[0] is not None and kept[1] is not None:
                return DistilledFiles(wanted.repo, kept[0], kept[1])
        failures: list[str] = []
        for wanted in sets:
            try:
                high, low = (
                    self._from_hub(wanted.repo, file, path, stop, max_bytes=self._distilled_max_bytes)
                    for file in (wanted.high, wanted.low)
                )
                return DistilledFiles(wanted.repo, high, low)
            except (Unsupported, ModelUnavailable, InputInvalid, InputFailed) as failure:
                logger.warning("the distilled LoRAs of %s cannot be fetched: %s", wanted.repo, failure.message)
                failures.append(f"{wanted.repo}: {failure.message}")
        raise ModelUnavailable(
            f"the distilled LoRAs of turbo are not on this worker and cannot be fetched ({'; '.join(failures)}); its "
            "operator can fetch them ahead with python -m builder.prepare --turbo; meanwhile use draft",
            path=path,
        )

    def svi(self, *, path: str) -> tuple[LoraFile, LoraFile]:
        """The first pair of `SVI` that the operator's folder has, high and low.

        Raises Unsupported where there is none, InputInvalid and ModelUnavailable for files that cannot be read.
        """
        present = self._in_folder()
        for high, low in SVI:
            if high in present and low in present:
                return self._from_folder(high, path), self._from_folder(low, path)
        looked_for = "; or ".join(" and ".join(pair) for pair in reversed(SVI))
        raise Unsupported(
            "svi needs its two LoRAs, which this worker does not have: send last_frame or keyframes. Its operator can "
            f"put them into {{MODEL_CACHE_DIR}}/loras: {looked_for}",
            path=path,
        )

    def _kept(self, repo: str, file: str) -> LoraFile | None:
        known = self._cache.known(_hub_source(repo, file))
        kept = self._cache.find(known[0]) if known is not None else None
        return LoraFile(kept, known[0], _short(PurePosixPath(file).name)) if known and kept else None

    def _from_folder(self, name: str, path: str) -> LoraFile:
        """The name is compared with those in the folder, and never becomes a path itself."""
        usable = self._in_folder()
        file = usable.get(name)
        if file is None:
            raise Unsupported(f"this worker has no LoRA file of that name; it has {_listed(usable)}", path=path)
        try:
            check_safetensors(file, path=path)
            return LoraFile(file, self._cache.sha256_of(file), _short(name))
        except OSError as failure:
            raise ModelUnavailable("the worker cannot read its LoRA file of that name", path=path) from failure

    def _in_folder(self) -> dict[str, Path]:
        """The files of the operator's folder by name, without what is a link to elsewhere."""
        home = self._folder.resolve()
        try:
            return {
                entry.name: entry
                for entry in self._folder.iterdir()
                if not entry.name.startswith(".") and entry.is_file() and entry.resolve().is_relative_to(home)
            }
        except OSError:
            return {}

    def _from_url(self, url: str, path: str, stop: threading.Event | None) -> LoraFile:
        self._opener.check(url, path=path)
        name = _short(unquote(PurePosixPath(urlsplit(url).path).name))
        known = self._cache.known(url)
        if known is not None and known[1] < URL_FRESH_S and (kept := self._cache.find(known[0])) is not None:
            return LoraFile(kept, known[0], name)

        def download(part: Path) -> str:
            sha256 = self._opener.download(url, part, limits=self._limits, path=path, stop=stop)
            check_safetensors(part, path=path)
            return sha256

        return self._taken(url, download, name, path)

    def _from_hub(
        self,
        repo: str,
        file: str,
        path: str,
        stop: threading.Event | None,
        *,
        max_bytes: int | None = None,
    ) -> LoraFile:
        name = _short(PurePosixPath(file).name)
        try:
            entry = self._hub.find(repo, file, path=path, stop=stop)
        except ModelUnavailable as failure:
            if (found := self._kept(repo, file)) is None:
                raise
            logger.warning("LoRA %s: %s; the copy in the cache is used", name, failure.message)
            return found
        if entry.sha256 is not None and (kept := self._cache.find(entry.sha256)) is not None:
            return LoraFile(kept, entry.sha256, name)
        _check_size(entry.size, self._limits.max_bytes if max_bytes is None else max_bytes, path)

        def download(part: Path) -> str:
            sha256 = self._hub.download(entry, part, path=path, stop=stop)
            check_safetensors(part, path=path)
            return sha256

        return self._taken(_hub_source(repo, file), download, name, path)

    def _taken(self, source: str, fetch: Callable[[Path], str], name: str, path: str) -> LoraFile:
        try:
            file, sha256 = self._cache.take(source, fetch)
        except ModelUnavailable as failure:
            raise ModelUnavailable(failure.message, path=path) from failure
        logger.info("fetched LoRA %s: %.1f MB, %s", name, file.stat().st_size / MEGABYTE, sha256[:12])
        return LoraFile(file, sha256, name)


def _hub_source(repo: str, file: str) -> str:
    """The name of a file of the hub in the cache."""
    return f"hub:{repo}/{file}"


def _check_size(size: int, max_bytes: int, path: str) -> None:
    if size > max_bytes:
        raise InputFailed(f"the file is larger than the {max_bytes / MEGABYTE:g} MB allowed here", path=path)


def _short(name: str) -> str:
    """A file name as the log may show it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:60] or "unnamed"


def _listed(names: dict[str, Path]) -> str:
    shown = sorted(_short(name) for name in names)
    more = f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else ""
    return (", ".join(shown[:_LISTED]) + more) if shown else "none"
