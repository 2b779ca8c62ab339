"""The one place where files are marked: after encoding, before anything of them is measured or leaves.

marker = Marker.from_settings(settings)
video = marker.mark(video, Origin(model="wan2.2-t2v-a14b"))
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from worker.base.errors import EncodeFailed, SettingsError
from worker.base.files import sha256_of
from worker.base.settings import Settings
from worker.media.encode import VideoFile
from worker.media.marks.metadata import embed
from worker.media.marks.provenance import Origin, Provenance

if TYPE_CHECKING:
    from worker.media.marks.signing import SigningKey

logger = logging.getLogger(__name__)

TSA_LIMIT_S = 5.0
# Of metadata, a manifest without its certificates, and a time stamp with its own: twice what was measured, or more.
METADATA_BYTES, MANIFEST_BYTES, STAMP_BYTES = 4_000, 6_000, 24_000
# c2pa-rs knows no Matroska, and puts files of its own beside the frames of a ZIP.
UNSIGNED = frozenset({"video/webm", "application/zip"})
_UNSTAMPED = "provenance: signed without a time stamp, the time stamp authority sent none in time (C2PA_TSA_URL)"
_FAILED = "provenance: not signed, C2PA_CERT_CHAIN and C2PA_PRIVATE_KEY could not be used; the log says why"


@dataclass(frozen=True, slots=True)
class Marker:
    """Marks files as made by AI; where `is_on` is false it leaves them as they are.

    `key` signs them too, with time stamps of `tsa_url`, which has `tsa_limit_s` for each. `producer` is named in
    China's label.
    """

    is_on: bool = True
    key: SigningKey | None = None
    tsa_url: str | None = None
    producer: str | None = None
    tsa_limit_s: float = TSA_LIMIT_S

    @classmethod
    def from_settings(cls, settings: Settings) -> Marker:
        """Raises SettingsError where certificate chain and key cannot sign."""
        chain, key = settings.c2pa_cert_chain, settings.c2pa_private_key
        if not settings.ai_mark:
            return cls(is_on=False)
        if (chain is None) != (key is None):
            missing = "C2PA_CERT_CHAIN" if chain is None else "C2PA_PRIVATE_KEY"
            raise SettingsError([f"{missing} is not set: set both C2PA_CERT_CHAIN and C2PA_PRIVATE_KEY, or neither"])
        signing_key = None
        if chain is not None and key is not None:
            from worker.media.marks import signing  # a library of 50 MB that most workers do not need

            signing_key = signing.SigningKey.load(chain, key.get_secret_value())
        return cls(True, signing_key, settings.c2pa_tsa_url, settings.aigc_producer)

    @property
    def keeps_ingredients(self) -> bool:
        """Whether `Origin.ingredients` has a use."""
        return self.is_on and self.key is not None

    def most_bytes(self, ingredients: Sequence[bytes] = ()) -> int:
        """By how much a file grows at most."""
        if self.key is None or not self.is_on:
            return METADATA_BYTES if self.is_on else 0
        signed = METADATA_BYTES + MANIFEST_BYTES + len(self.key.chain) + sum(map(len, ingredients))
        return signed if self.tsa_url is None else signed + STAMP_BYTES

    def unstamped(self) -> Marker:
        """The same without time stamps, for what must be small or is made often."""
        return replace(self, tsa_url=None)

    def mark(self, video: VideoFile, origin: Origin) -> VideoFile:
        """The video with all of its files marked in place: size and digest are those of the marked file.

        Blocks: milliseconds a file, and as long as the time stamp authority takes. A signature that cannot be made, or
        has no time stamp, is a note of `provenance`. Raises EncodeFailed where a file cannot be written.
        """
        if not self.is_on:
            return video
        provenance = self.mark_file(video.path, video.format.content_type, origin)
        # One that was silent once is not waited for again: what is beside the video is signed without it.
        beside = self if provenance.timestamped else self.unstamped()
        for path, content_type in ((video.poster, "image/jpeg"), (video.frames, "application/zip")):
            if path is not None:
                beside.mark_file(path, content_type, origin)
        with video.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return replace(video, size_bytes=file.tell(), sha256=digest, provenance=provenance)

    def mark_preview(self, path: Path, origin: Origin) -> Provenance | None:
        """Mark a preview, a WebP, in place; None where marks are off. Raises EncodeFailed.

        It is signed without a time stamp: it is shown at once, and must stay small.
        """
        return self.unstamped().mark_file(path, "image/webp", origin) if self.is_on else None

    def mark_file(self, path: Path, content_type: str, origin: Origin) -> Provenance:
        """Mark one file in place. Raises EncodeFailed."""
        stamp = secrets.token_hex(4)
        tagged, signed = (path.with_name(f".{path.name}.{stamp}.{step}") for step in ("tagged", "signed"))
        try:
            origin = origin.of_file(sha256_of(path))
            provenance = Provenance(origin.digital_source_type, origin.instance_id)
            embed(path, tagged, content_type, origin, self.producer)
            if self.key is not None and content_type not in UNSIGNED:
                provenance = self._sign(self.key, tagged, signed, content_type, origin, provenance)
            (signed if provenance.signed else tagged).replace(path)
        except OSError as failure:
            raise EncodeFailed("the marked video could not be written to the worker's disk; try again") from failure
        finally:
            for leftover in (tagged, signed):
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
        return provenance

    def _sign(
        self, key: SigningKey, source: Path, target: Path, content_type: str, origin: Origin, provenance: Provenance
    ) -> Provenance:
        from c2pa import C2paError

        from worker.media.marks.signing import NoTimeStamp

        notes: tuple[str, ...] = ()
        for tsa_url in dict.fromkeys((self.tsa_url, None)):
            try:
                key.sign(source, target, content_type, origin, tsa_url=tsa_url, limit_s=self.tsa_limit_s)
                return replace(provenance, signed=True, timestamped=tsa_url is not None, notes=notes)
            except NoTimeStamp as failure:
                logger.warning("no time stamp: %s", failure)
                notes = (_UNSTAMPED,)
                target.unlink()  # the try that was too late may still write there
            except C2paError as failure:
                logger.error("a file could not be signed: %s", failure)
        return replace(provenance, notes=(_FAILED,))
