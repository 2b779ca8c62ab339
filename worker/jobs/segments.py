"""A video of several segments on the GPU: each from the last frames of the one before, all of them in one file.

The frames of a finished segment wait in a file without loss, of which STATE_DIR has a copy: a worker that dies goes on
behind the last one, and memory does not grow with the number of segments. Where a segment fails, or the job is stopped,
what is finished becomes the video.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop, as_worker_error
from worker.delivery.journal import Entry
from worker.delivery.kept_segments import KeptSegments, Segment
from worker.engine import Conditioning, Engine, Video, device
from worker.jobs.make import Generated, Made, encoded
from worker.jobs.prepare_segments import before, sound
from worker.jobs.report import VideoReport
from worker.jobs.tidy import give_back_memory
from worker.media import VideoFile, color_match, lossless, seams
from worker.request import VideoRequest
from worker.request.values import Chain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Finished:
    segment: Segment
    path: Path


def make(
    video: Video,
    folder: Path,
    report: VideoReport,
    *,
    engine: Engine,
    stop: Stop,
    kept: KeptSegments,
    entry: Entry,
) -> Made:
    """Make the segments of `video` that are not kept yet, and encode all of them into `folder`. Blocks; GPU's thread.

    Raises as `make.make` does, where not even the first segment is finished, and where the worker shuts down.
    """
    report.waited()
    device.reset_peak()
    run = _Run(video, folder, report, engine, stop, kept, entry)
    failure = run.segments()
    made = run.encoded(failure)
    stop.extend()
    report.gpu_released()
    return made


class _Run:
    def __init__(
        self,
        video: Video,
        folder: Path,
        report: VideoReport,
        engine: Engine,
        stop: Stop,
        kept: KeptSegments,
        entry: Entry,
    ) -> None:
        assert video.request.chain is not None
        self._video = video
        self._chain: Chain = video.request.chain
        self._folder = folder
        self._report = report
        self._engine = engine
        self._stop = stop
        self._kept = kept
        self._entry = entry
        self._cold_start: dict[str, float] | None = None
        self.finished: list[_Finished] = []

    def segments(self) -> Exception | None:
        """Finish one segment after the other; returns what came before the last one was finished, if anything did."""
        of = len(self._video.segments)
        for number, clip in enumerate(self._video.segments):
            self._report.part(number / of, 1 / of)
            path = self._folder / f"{self._video.request.index}-{number}.frames"
            segment = self._kept.restore(self._entry, self._video.request.index, number, path)
            try:
                if segment is None:
                    self._stop.check()
                    segment = self._segment(number, clip, path)
            except ShuttingDown:
                raise
            except Exception as failure:
                if not self.finished:
                    raise
                return failure.with_traceback(None)  # which may hold tensors
            self.finished.append(_Finished(segment, path))
        return None

    def _segment(self, number: int, clip: Video, path: Path) -> Segment:
        request = clip.request
        shown_last = self._last_of(self._files())
        tail = shown_last if self._chain.continues(number) else []
        with self._report.rendering() as rendered:
            rendering = self._engine.generate(self._begun(number, clip, tail), watcher=self._report, stop=self._stop)
            rendered.update(rendering.seconds)
        self._cold_start = self._cold_start or rendering.cold_start
        measured = seams.Measured(shown_last[-1] if shown_last else None)
        with self._report.stage("encode"), closing(rendering.frames()) as frames:
            drawn = list(islice(frames, len(tail)))
            shown: Iterator[np.ndarray] = frames
            if drawn and self._chain.color_match:
                same = 0 if clip.svi is None else 1  # by SVI the first frame is the anchor
                behind = list(islice(frames, color_match.LOOKS_AT))
                shown = map(color_match.matching(drawn[same:], tail[same:], behind), chain(behind, frames))
            count = lossless.write(measured.passing(shown), path)
        segment = Segment(
            seed=request.seed,
            prompt=clip.prompt,
            num_frames=count,
            seam=measured.seam,
            lab=measured.mean_lab,
            parameters=rendering.parameters,
            warnings=rendering.warnings,
            tail=_packed(rendering.tail()) if self._chain.continuity == "svi" else None,
        )
        self._kept.keep(self._entry, self._video.request.index, number, segment, path)
        give_back_memory()
        return segment

    def _begun(self, number: int, clip: Video, tail: list[np.ndarray]) -> Video:
        """The segment with the pictures that other segments give it."""
        pictures = clip.conditioning
        if clip.svi is not None:
            return replace(clip, conditioning=self._by_svi(number, tail))
        if tail and pictures.image is None:
            known = [Image.fromarray(frame) for frame in tail]
            pictures = replace(pictures, image=known[0], video=known if len(known) > 1 else None)
        if self._chain.loop and number == len(self._video.segments) - 1:
            pictures = replace(pictures, last_image=Image.fromarray(next(self._frames())))
        return replace(clip, conditioning=pictures)

    def _by_svi(self, number: int, shown: list[np.ndarray]) -> Conditioning:
        """The anchor, on which the segment's shot began, and what is before: latents, or frames that were not made."""
        opening = max(each for each in range(number + 1) if each == 0 or self._chain.segments[each].cut)
        anchor = self._video.segments[opening].conditioning.image
        if anchor is None:
            if self._chain.continues(opening):  # a video of the caller's
                anchor = Image.fromarray(self._last_of(self._files()[:1])[0])
            else:
                anchor = Image.fromarray(next(self._read(self.finished[opening].path)))
        if number == 0:
            return Conditioning(image=anchor, svi=True, video=[Image.fromarray(frame) for frame in shown] or None)
        return Conditioning(image=anchor, svi=True, tail=_unpacked(self.finished[-1].segment.tail))

    def _last_of(self, files: Sequence[Path]) -> list[np.ndarray]:
        """The last frames in `files`, as many as the next segment begins with."""
        tail: list[np.ndarray] = []
        for path in reversed(files):
            if len(tail) < self._chain.overlap_frames:
                tail[:0] = deque(self._read(path), maxlen=self._chain.overlap_frames - len(tail))
        return tail

    def _frames(self) -> Generator[np.ndarray]:
        """Every frame that is finished so far."""
        for path in self._files():
            yield from self._read(path)

    def _files(self) -> list[Path]:
        given = [before(self._folder, self._video.request)] if self._chain.frames_before else []
        return [*given, *(each.path for each in self.finished)]

    def _read(self, path: Path) -> Generator[np.ndarray]:
        return lossless.read(path, self._video.shape.width, self._video.shape.height)

    def _check(self) -> None:
        """What is finished is delivered, whatever ends the job; a shutdown leaves it to the next worker."""
        if isinstance(self._stop.reason, ShuttingDown):
            self._stop.check()

    def encoded(self, failure: Exception | None) -> Made:
        """The file of what is finished; `failure` is why that is not all."""
        whole = self._video.request
        shape = replace(
            self._video.shape,
            num_frames=self._chain.frames_before + sum(each.segment.num_frames for each in self.finished),
        )
        notes: tuple[str, ...] = ()
        if failure is not None:
            error = as_worker_error(failure, self._entry.job_id, self._stop)
            of = len(self._video.segments)
            notes = (f"{whole.at('segments')}: {len(self.finished)} of {of} are in the file: {error}",)
            logger.warning("video %d ends behind segment %d of %d", whole.index, len(self.finished), of)
        with self._report.stage("encode"), closing(self._frames()) as frames:
            heard = sound(self._folder, whole)
            file = encoded(
                *(frames, whole, shape, self._folder, self._report, self._check),
                sound=heard if heard.exists() else None,
            )
        segments = [each.segment for each in self.finished]
        engine_notes = tuple(dict.fromkeys(note for segment in segments for note in segment.warnings))
        return Made(
            self._video,
            Generated(shape, segments[0].parameters, (*engine_notes, *notes), self._cold_start),
            file,
            device.peak_bytes(),
            segments=tuple(_results(segments, whole, file)),
            unfinished=failure,
        )


def _packed(latents: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, latents, allow_pickle=False)
    return file.getvalue()


def _unpacked(tail: bytes | None) -> np.ndarray:
    assert tail is not None  # every segment of such a chain has one
    latents: np.ndarray = np.load(io.BytesIO(tail), allow_pickle=False)
    return latents


def _results(segments: Sequence[Segment], request: VideoRequest, file: VideoFile) -> Iterator[dict[str, Any]]:
    """The segments as the result has them; frames are those of the file."""
    first = 0 if request.chain is None else request.chain.frames_before
    for index, segment in enumerate(segments):
        begins, ends = (-(-number * file.fps // request.fps) for number in (first, first + segment.num_frames))
        yield {
            "index": index,
            "first_frame": begins,
            "num_frames": (file.num_frames if index == len(segments) - 1 else ends) - begins,
            "seed": segment.seed,
            "prompt": segment.prompt,
            "seam": None if segment.seam is None else round(segment.seam, 3),
            "color_drift": round(seams.color_drift(segment.lab, segments[0].lab), 3),
        }
        first += segment.num_frames
