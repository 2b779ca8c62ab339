"""What surrounds a worker that is to be killed: the doubles that hold it at the place where it shall die."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from PIL import Image

from tests.kits import s3_double
from tests.kits.loopback import Server, answering, response
from tests.kits.platform_double import Platform
from tests.kits.webhook_receiver import Handler as Hook
from tests.kits.webhook_receiver import Received, Receiver

VIDEOS = 2
# Long enough for a random moment inside each stage, on any machine.
_STEPS = {"generate": 100}
_FRAMES = {"encode": 33}


@dataclass
class Site:
    """What surrounds the workers of one lane.

    `held` is where the worker is kept waiting, such as `upload 1`; `is_done` says whether what it waits for was done
    all the same, so that only the answer is missing. The last webhook is always held: no job ends before its kill.
    """

    platform: Platform
    receiver: Receiver
    bucket: s3_double.Double
    pictures: Server
    home: Path
    held: frozenset[str] = frozenset()
    is_done: bool = False
    seen: set[str] = field(default_factory=set)
    arrived: list[dict[str, Any]] = field(default_factory=list)
    released: Event = field(default_factory=Event)

    def at(self, place: str) -> bool:
        """Note that the worker is at `place`; whether it is to wait there."""
        self.seen.add(place)
        return place in self.held

    def hold(self, place: str, *, is_done: bool) -> None:
        self.seen.clear()
        self.released = Event()
        self.held, self.is_done = frozenset({place, f"webhook {VIDEOS - 1}"}), is_done

    def release(self) -> None:
        self.held = frozenset()
        self.released.set()

    def payload(self, stage: str, video: int) -> dict[str, Any]:
        """A job whose video number `video` is made so that the stage lasts."""
        videos = [
            {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 2}
            for _ in range(VIDEOS)
        ]
        chosen: dict[str, Any] = videos[video]
        chosen["num_inference_steps"] = _STEPS.get(stage, 2)
        chosen["num_frames"] = _FRAMES.get(stage, 5)
        if stage == "load":
            chosen["model"] = "5b"
        if stage == "fetch":
            chosen["reference_image_url"] = self.pictures.url(f"/{video}.png")
        return {"webhook_url": self.receiver.url, "job_request_params": videos}

    @property
    def environment(self) -> dict[str, str]:
        """What the workers get on top of the platform's variables."""
        return {
            "PRELOAD": "t2v",
            **self.bucket.environment(),
        }


@contextmanager
def open_site(home: Path) -> Iterator[Site]:
    """The doubles of one lane, running."""
    stream = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(stream, "PNG")
    picture = answering(response(stream.getvalue(), headers="Content-Type: image/png"))

    def show(connection: Any, request: bytes) -> None:
        if site.at(f"fetch {request.split(b'/')[1][:1].decode()}"):
            site.released.wait(60)
        picture(connection, request)

    def take_event(hook: Hook, received: Received, _: int) -> None:
        event = received.event
        if event["type"] == "progress":
            hook.answer(200)
            return
        held = site.at(f"webhook {event['index']}")
        if not held or site.is_done:
            site.arrived.append(event)
        if held:
            site.released.wait(60)
        hook.answer(200)

    def take_object(handler: s3_double.Handler) -> bool:
        name = handler.path.rpartition("/")[2]
        if not (name.endswith(".mp4") and site.at(f"upload {name[0]}")):
            return False

        def wait_and_cut(*_: object, **__: str) -> None:
            site.released.wait(60)
            handler.cut()

        handler.answer = wait_and_cut  # type: ignore[method-assign, assignment]
        if not site.is_done:
            wait_and_cut()
        return not site.is_done

    def look_at_object(handler: s3_double.Handler) -> bool:
        name = handler.path.rpartition("/")[2]
        if name.endswith(".jpg"):
            site.at(f"stored {name[0]}")
        return False

    home.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        bucket = stack.enter_context(s3_double.serving())
        site = Site(
            stack.enter_context(Platform()),
            stack.enter_context(Receiver(take_event)),
            bucket,
            stack.enter_context(Server(show)),
            home,
        )
        bucket.always.update(put=take_object, head=look_at_object)
        yield site
