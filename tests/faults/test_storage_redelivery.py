"""A job that is delivered again: stored videos are linked anew, and made again only where they are gone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.flow.conftest import Receiver
from tests.kits.s3_double import reset, status
from tests.kits.scene import EVERYTHING, Scene, small
from tests.kits.slow import slow


@pytest.mark.slow
def test_a_redelivered_job_answers_presigned_urls_that_are_good(
    make_scene: Callable[..., Scene], receiver: Receiver
) -> None:
    payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [small(), small(thumbnail=False)]}
    scene = make_scene(acl="private", presign_expiry_s=11)
    first = scene.run(payload)["videos"]
    later = make_scene(acl="private", presign_expiry_s=22)  # as 11 s later, when the recorded ones are bad
    second = later.run(payload)["videos"]
    for old, new, suffixes in zip(first, second, ((".mp4", ".jpg"), (".mp4",)), strict=True):
        urls = ("video_url", "thumbnail_url")[: len(suffixes)]
        for name, suffix in zip(urls, suffixes, strict=True):
            for video, expires in ((old, "11"), (new, "22")):
                assert urlsplit(video[name]).path.endswith(suffix)
                assert parse_qs(urlsplit(video[name]).query)["X-Amz-Expires"] == [expires]
        assert {**new, **{name: old[name] for name in urls}} == old
    assert second[1]["thumbnail_url"] is None
    assert later.made == []


@pytest.mark.slow  # tests/unit/jobs has it without an engine
def test_a_finished_video_that_was_deleted_from_the_bucket_is_made_again(scene: Scene) -> None:
    payload = {"job_id": "one", "job_request_params": [small(), small(seed=2)]}
    first = scene.run(payload)
    gone = next(path for path in scene.double.objects if path.endswith("/one/1.mp4"))
    del scene.double.objects[gone]
    second = scene.run(payload)
    assert second["status"] == "completed"
    assert scene.made == [0, 1, 1]
    assert second["videos"][0] == first["videos"][0]
    assert hashlib.sha256(scene.object("one", 1)).hexdigest() == second["videos"][1]["sha256"]


@pytest.mark.parametrize("fault", [reset, *slow(status(503, "SlowDown"), status(403, "AccessDenied"))])
def test_a_storage_that_cannot_be_asked_costs_a_redelivered_job_nothing(scene: Scene, fault: Any) -> None:
    payload = {"job_id": "one", "job_request_params": [small()]}
    first = scene.run(payload)
    scene.double.always.update(dict.fromkeys(EVERYTHING, fault))
    assert scene.run(payload)["videos"] == first["videos"]
    assert scene.made == [0]
