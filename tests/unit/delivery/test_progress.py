from __future__ import annotations

import itertools
import threading
import time

from hypothesis import given
from hypothesis import strategies as st

from worker.delivery.webhooks.progress_sender import ProgressEvent, ProgressSender
from worker.jobs.progress import Progress

STATUSES = ("queued", "loading", "generating", "encoding", "uploading")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(total: int = 1, **options: object) -> tuple[Progress, list[ProgressEvent], Clock]:
    seen: list[ProgressEvent] = []
    clock = Clock()
    return Progress(total, [seen.append], clock=clock, **options), seen, clock


def test_the_first_event_goes_out_at_once() -> None:
    progress, seen, _ = make()
    progress.stage(0, "queued")
    assert seen == [ProgressEvent(0, "queued", 0)]


def test_two_seconds_and_five_percent_must_both_have_passed() -> None:
    progress, seen, clock = make()
    progress.stage(0, "loading", 1.0)  # 5 percent
    clock.now += 1.99
    progress.stage(0, "generating", 0.5)
    assert len(seen) == 1
    clock.now += 0.01
    progress.stage(0, "generating", 0.5)
    assert [event.progress for event in seen] == [5, 47]
    clock.now += 100
    progress.stage(0, "generating", 0.552)  # 51.9
    assert len(seen) == 2
    progress.stage(0, "generating", 0.554)  # 52.1
    assert [event.progress for event in seen] == [5, 47, 52]


def test_a_job_counts_all_of_its_videos() -> None:
    progress, seen, _ = make(4, min_interval_s=0, min_percent=0)
    progress.stage(0, "uploading", 1.0)
    progress.stage(1, "generating", 0.0)
    progress.finished(1)
    progress.stage(2, "uploading", 1.0)
    progress.stage(3, "uploading", 1.0)
    assert [event.progress for event in seen] == [25, 26, 75, 100]


def test_a_finished_video_is_not_named_again_and_counts_as_done() -> None:
    progress, seen, _ = make(2, min_interval_s=0, min_percent=0)
    progress.stage(0, "generating", 0.1)
    progress.finished(0)
    progress.stage(0, "uploading", 1.0)
    assert [event.index for event in seen] == [0]
    progress.stage(1, "queued")
    assert seen[-1] == ProgressEvent(50, "queued", 1)


def test_nonsense_does_not_raise() -> None:
    progress, seen, _ = make(min_interval_s=0, min_percent=0)
    for index, fraction in ((7, 0.5), (-1, 0.5), (0, float("nan")), (0, -3.0), (0, 9.0)):
        progress.stage(index, "generating", fraction)
    progress.finished(9)
    assert [event.progress for event in seen] == [5, 5, 90]
    Progress(0, [seen.append]).stage(0, "queued")
    assert len(seen) == 3


def test_a_failing_sink_stops_neither_the_job_nor_the_other_sinks() -> None:
    seen: list[ProgressEvent] = []

    def broken(event: ProgressEvent) -> None:
        raise RuntimeError("no")

    Progress(1, [broken, seen.append]).stage(0, "queued")
    assert len(seen) == 1


STEPS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from((*STATUSES, "finished")),
        st.floats(allow_nan=True),
        st.floats(0, 5),
    ),
    max_size=60,
)


@given(STEPS)
def test_progress_never_goes_down_and_keeps_its_distance(steps: list[tuple[int, str, float, float]]) -> None:
    seen: list[tuple[float, ProgressEvent]] = []
    finished: set[int] = set()
    clock = Clock()
    progress = Progress(4, [lambda event: seen.append((clock.now, event))], clock=clock)
    for index, status, fraction, wait_s in steps:
        clock.now += wait_s
        if status == "finished":
            progress.finished(index)
            finished.add(index)
            continue
        before = len(seen)
        progress.stage(index, status, fraction)
        assert index not in finished or len(seen) == before
    assert all(0 <= event.progress <= 100 for _, event in seen)
    for (at, event), (next_at, following) in itertools.pairwise(seen):
        assert next_at - at >= 2.0
        assert following.progress - event.progress >= 5


def test_threads_see_events_in_order() -> None:
    progress, seen, _ = make(4, min_interval_s=0, min_percent=0)

    def run(index: int) -> None:
        for step in range(200):
            progress.stage(index, "generating", step / 200)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    percents = [event.progress for event in seen]
    assert len(percents) == 800
    assert percents == sorted(percents)


class SlowPost:
    """Stands for the network: each send lasts until it is let go."""

    def __init__(self) -> None:
        self.begun: list[ProgressEvent] = []
        self.times: list[float] = []
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)

    def __call__(self, event: ProgressEvent) -> None:
        self.begun.append(event)
        self.times.append(time.monotonic())
        self.entered.release()
        assert self.let_go.acquire(timeout=20)


def test_the_latest_event_wins_while_one_is_under_way() -> None:
    post = SlowPost()
    sender = ProgressSender(post, every_s=0.0)
    sender.offer(ProgressEvent(1, "generating", 0))
    assert post.entered.acquire(timeout=20)
    for percent in (10, 20, 30):
        sender.offer(ProgressEvent(percent, "generating", 0))
    post.let_go.release()
    assert post.entered.acquire(timeout=20)
    post.let_go.release()
    sender.finish(0, wait_s=20)
    assert [event.progress for event in post.begun] == [1, 30]
    sender.close(wait_s=20)


def test_the_pause_between_sends_holds_though_an_answer_was_late() -> None:
    post = SlowPost()
    sender = ProgressSender(post, every_s=0.4)
    for percent in (1, 10):
        sender.offer(ProgressEvent(percent, "generating", 0))
        post.let_go.release()
        assert post.entered.acquire(timeout=20)
    sender.close(wait_s=20)
    assert post.times[1] - post.times[0] >= 0.4


def test_finish_waits_for_the_event_under_way_and_drops_the_next() -> None:
    post = SlowPost()
    sender = ProgressSender(post, every_s=0.0)
    sender.offer(ProgressEvent(1, "generating", 0))
    assert post.entered.acquire(timeout=20)
    sender.offer(ProgressEvent(50, "generating", 0))
    began = time.monotonic()
    sender.finish(0, wait_s=0.3)
    assert time.monotonic() - began >= 0.3
    threading.Timer(0.1, post.let_go.release).start()
    sender.finish(0, wait_s=20)
    sender.offer(ProgressEvent(60, "uploading", 0))
    sender.close(wait_s=20)
    assert [event.progress for event in post.begun] == [1]


def test_finish_does_not_wait_for_another_video() -> None:
    post = SlowPost()
    sender = ProgressSender(post, every_s=0.0)
    sender.offer(ProgressEvent(60, "generating", 1))
    assert post.entered.acquire(timeout=20)
    sender.offer(ProgressEvent(70, "generating", 1))
    began = time.monotonic()
    sender.finish(0, wait_s=20)
    assert time.monotonic() - began < 10
    post.let_go.release()
    assert post.entered.acquire(timeout=20)
    post.let_go.release()
    sender.close(wait_s=20)
    assert [event.progress for event in post.begun] == [60, 70]


def test_nothing_is_sent_after_close() -> None:
    post = SlowPost()
    sender = ProgressSender(post, every_s=0.0)
    sender.close(wait_s=1)
    sender.offer(ProgressEvent(1, "generating", 0))
    assert post.begun == []


def test_a_failing_post_does_not_end_the_sender() -> None:
    sent = threading.Event()

    def post(event: ProgressEvent) -> None:
        if event.progress == 1:
            raise RuntimeError("no")
        sent.set()

    sender = ProgressSender(post, every_s=0.0)
    sender.offer(ProgressEvent(1, "generating", 0))
    sender.finish(5, wait_s=0)
    while not sent.is_set():
        sender.offer(ProgressEvent(2, "generating", 0))
        time.sleep(0.01)
    sender.close(wait_s=20)
    assert sent.is_set()


def test_a_new_preview_is_told_at_once_and_in_every_later_event_of_its_video() -> None:
    progress, seen, clock = make(2)
    progress.stage(0, "generating", 0.5, step=5, steps=10)
    progress.stage(0, "generating", 0.6, step=6, steps=10)
    progress.preview(0, "https://example.com/0.preview.webp", 6)
    assert seen[1:] == [
        ProgressEvent(
            28, "generating", 0, 6, 10, None, preview_url="https://example.com/0.preview.webp", preview_step=6
        )
    ]
    clock.now += 100
    progress.stage(0, "generating", 1.0)
    progress.stage(1, "generating", 0.0)
    assert seen[-1].preview_step == 6
    progress.finished(0)
    progress.preview(0, "https://example.com/0.preview.webp", 7)
    clock.now += 100
    progress.stage(1, "generating", 0.9)
    assert [event.preview_step for event in seen] == [None, 6, 6, None]


def test_a_new_preview_does_not_wait_for_the_pause_between_two_sends() -> None:
    sent: list[ProgressEvent] = []
    arrived = threading.Semaphore(0)

    def post(event: ProgressEvent) -> None:
        sent.append(event)
        arrived.release()

    sender = ProgressSender(post, every_s=60.0)
    for event in (
        ProgressEvent(1, "generating", 0),
        ProgressEvent(2, "generating", 0, preview_url="u", preview_step=3),
        ProgressEvent(3, "generating", 0, preview_url="u", preview_step=4),
    ):
        sender.offer(event)
        assert arrived.acquire(timeout=10)
    sender.offer(ProgressEvent(4, "generating", 0, preview_url="u", preview_step=4))
    sender.close(wait_s=0)
    assert [event.progress for event in sent] == [1, 2, 3]
