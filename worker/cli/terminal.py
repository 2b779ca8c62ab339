"""What a person at a terminal sees of a run: a progress bar, aligned lines, and a summary of the answer."""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from time import monotonic as _now
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from worker.base.text import printable

if TYPE_CHECKING:
    from worker.delivery.webhooks.progress_sender import ProgressEvent

Answer = TypeVar("Answer")

_TICK_S = 1.0
_LABEL_WIDTH = 10
_FORMAT = "  {desc:<12}{percentage:3.0f}%|{bar:30}| {elapsed}{postfix}"


class Bar:
    """Draws on standard error what is done, how much of it, and the time left; nothing where that is no terminal.

    A sink for the progress events of a job: `Progress(total, [bar])`.
    """

    def __init__(self, status: str = "queued") -> None:
        self._status = status
        self._step = ""
        self._preview: str | None = None
        self._stopping = False
        # When this status began and at how many percent, then the same of the last change.
        self._since: tuple[float, float] = (_now(), 0)
        self._last = self._since

    def __enter__(self) -> Bar:
        self._bar = tqdm(
            total=100,
            desc=self._status,
            disable=None,
            leave=False,
            file=sys.stderr,
            bar_format=_FORMAT,
            mininterval=0,
        )
        self._closed = threading.Event()
        # A step of a large video takes half a minute: the clock shows that something still happens.
        self._clock = threading.Thread(target=self._tick, name="bar", daemon=True)
        self._clock.start()
        return self

    def __call__(self, event: ProgressEvent) -> None:
        if event.preview_url is not None and event.preview_url != self._preview and not self._bar.disable:
            self._preview = event.preview_url
            BesideBar().write(f"  preview    {event.preview_url}\n")
        self.show(event.status, event.progress, step=event.step, steps=event.steps)

    def show(
        self, status: str, progress: int | None = None, *, step: int | None = None, steps: int | None = None
    ) -> None:
        """Show what is being done, how much of the job is done (0 to 100; None: no change), and which step it is."""
        if status != self._status:
            self._status = status
            self._since = (_now(), self._bar.n if progress is None else progress)
        if progress is not None:
            self._bar.n = progress
            self._last = (_now(), progress)
        self._step = f"step {step}/{steps}" if step is not None and steps is not None else ""
        self._draw()

    def stop(self, text: str) -> None:
        """Write `text` as a line of its own at once, and show `stopping` from now on, whatever else is reported."""
        self._stopping = True
        BesideBar().write(f"{text}\n")
        self._draw()

    def _draw(self) -> None:
        self._bar.set_description_str("stopping" if self._stopping else self._status, refresh=False)
        self._bar.set_postfix_str(", ".join(filter(None, (self._step, self._left()))), refresh=False)
        self._bar.refresh()  # `update` waits for as many percent as the last one brought

    def _left(self) -> str:
        """The time left at the speed of this status; empty until it has moved, and when that time is over."""
        (began, first), (at, done) = self._since, self._last
        if self._stopping or done <= first or at <= began:
            return ""
        left_s = (100 - done) * (at - began) / (done - first) - (_now() - at)
        if left_s < 1:
            return ""
        return f"{left_s:.0f} s left" if left_s < 100 else f"{left_s / 60:.0f} min left"

    def _tick(self) -> None:
        while not self._bar.disable and not self._closed.wait(_TICK_S):
            self._draw()

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._clock.join()
        self._bar.close()


async def followed(job: Callable[[Bar], Coroutine[Any, Any, Answer]]) -> Answer:
    """What `job` returns, with a bar meanwhile. Ctrl-C cancels it, which ends it within a step, and says so at once."""
    import asyncio  # 30 ms, which --help need not wait for

    loop = asyncio.get_running_loop()
    with Bar() as bar:
        flow = asyncio.ensure_future(job(bar))

        def stop() -> None:
            bar.stop("stopping: the current step is finished first")
            flow.cancel()

        loop.add_signal_handler(signal.SIGINT, stop)  # in place of the SDK's, which would exit with status 0
        try:
            return await flow
        finally:
            loop.remove_signal_handler(signal.SIGINT)


class BesideBar(io.StringIO):
    """A stream for log lines that stand above the bar instead of in it."""

    def write(self, text: str) -> int:
        tqdm.write(text, file=sys.stderr, end="")
        return len(text)


def show(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def complain(text: str) -> None:
    """One message on standard error, without what a terminal would take for a command."""
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def row(label: str, text: str) -> list[str]:
    """`text` behind its label; wrapped to the width of a terminal, one line where there is none."""
    head = f"  {label:<{_LABEL_WIDTH}}"
    if not sys.stdout.isatty():
        return [head + text]
    width = max(40, shutil.get_terminal_size().columns - 1)
    indent = " " * len(head)
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False) or [head]


def summarise(answer: Mapping[str, Any]) -> None:
    """Write the answer of a job to standard output in a few lines: where each video is stored, or what went wrong."""
    lines = [f"job {answer['job_id']}: {answer['status']} in {answer['timings']['total']:.1f} s"]
    for video in answer["videos"]:
        lines += _completed(video) if video["status"] == "completed" else [_failed(video["index"], video["error"])]
    if not answer["videos"]:
        lines.append(_failed(None, json.loads(answer["error"])))
    show(printable(line) for line in lines)


def _completed(video: Mapping[str, Any]) -> list[str]:
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in video["timings"].items())
    poster, cost = video["thumbnail_url"], video.get("cost_usd")
    return [
        f"  video {video['index']}   {video['video_url'] or 'none, preview_only'}",
        *([f"  preview   {video['preview_url']}"] if video.get("preview_url") is not None else []),
        *([f"  poster    {poster}"] if poster is not None else []),
        f"  what      {video['resolution']}, {video['num_frames']} frames at {video['fps']} fps "
        f"({video['duration_seconds']:.2f} s), {video['size_bytes'] / 1e6:.2f} MB",
        f"  made by   {video['model_version']}, {video['mode']}, seed {video['seed']}, on {video['gpu']}",
        *row("prompt", video["prompt"]),
        *row("seconds", seconds),
        *([f"  cost      {dollars(cost)}"] if cost is not None else []),
        *(line for warning in video["warnings"] for line in row("warning", warning)),
    ]


def dollars(amount: float) -> str:
    """Two digits behind the point, or two that say something."""
    if 0 < amount < 0.005:
        return f"${amount:.2g}" if amount >= 0.0001 else "under $0.0001"
    return f"${amount:.2f}"


def _failed(index: int | None, error: Mapping[str, Any]) -> str:
    return f"  {'job' if index is None else f'video {index}'} failed: {error['code']}: {error['message']}"
