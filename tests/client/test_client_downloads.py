"""Files of a video: resumed, checked against size and hash, whole or not at all."""

from __future__ import annotations

import base64
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kits.loopback import Server, response, takes_at_most
from tests.kits.paid_endpoint import PaidEndpoint, video_of
from videogen_client import DownloadCorrupt, DownloadFailed
from videogen_client.downloads import ATTEMPTS

CONTENT = random.Random(1).randbytes(50_000)
OTHER = random.Random(2).randbytes(50_000)


def ranges(endpoint: PaidEndpoint) -> list[str | None]:
    return [seen.headers.get("range") for seen in endpoint.requests("file")]


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [("cut", 1000)] * 10,
        [("cut", 0)] * (ATTEMPTS - 1),
        [("status", 503), ("cut", 20_000), ("status", 429), ("cut", 3)],
        [("wrong", 0)],
        [("cut", 49_999), ("status", 416)],
    ],
    ids=["none", "cut ten times", "cut before the first byte", "mixed", "wrong once", "cannot go on"],
)
def test_a_file_arrives_whole(
    faults: list[tuple[str, int]], client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    endpoint.file_faults["0.mp4"] = faults
    target = client.download(video_of(endpoint, "0.mp4", CONTENT), tmp_path / "videos" / "clip.mp4")
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert {seen.headers.get("authorization") for seen in endpoint.requests("file")} == {None}


def test_what_is_there_is_not_sent_again(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    endpoint.file_faults["0.mp4"] = [("cut", 1000)] * 10
    video = video_of(endpoint, "0.mp4", CONTENT)
    client.download(video, tmp_path / "clip.mp4")
    assert ranges(endpoint) == [None, *(f"bytes={1000 * n}-" for n in range(1, 11))]
    client.download(video, tmp_path / "clip.mp4")
    assert len(endpoint.requests("file")) == 11


def test_another_file_is_overwritten_only_where_that_is_allowed(
    client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    video, target = video_of(endpoint, "0.mp4", CONTENT), tmp_path / "clip.mp4"
    target.write_bytes(OTHER)
    with pytest.raises(FileExistsError):
        client.download(video, target, overwrite=False)
    assert (target.read_bytes(), ranges(endpoint)) == (OTHER, [])
    client.download(video, target)
    assert client.download(video, target, overwrite=False).read_bytes() == CONTENT


def test_what_was_fetched_so_far_is_reported(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    seen: list[int] = []
    endpoint.file_faults["0.mp4"] = [("cut", 1000)]
    client.download(video_of(endpoint, "0.mp4", CONTENT), tmp_path / "clip.mp4", on_bytes=seen.append)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1000, len(CONTENT))


def test_a_download_goes_on_after_one_that_failed(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    video = video_of(endpoint, "0.mp4", CONTENT)
    endpoint.file_faults["0.mp4"] = [("cut", 1000), *[("status", 503)] * ATTEMPTS]
    with pytest.raises(DownloadFailed) as caught:
        client.download(video, tmp_path / "clip.mp4")
    assert caught.value.retryable
    assert not (tmp_path / "clip.mp4").exists()
    assert client.download(video, tmp_path / "clip.mp4").read_bytes() == CONTENT
    assert ranges(endpoint)[-1] == "bytes=1000-"


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "other bytes": lambda content: OTHER,
    "too short": lambda content: content[:-1],
    "too long": lambda content: content + b"!",
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_file_that_is_not_the_workers_is_not_kept(
    spoil: Callable[[bytes], bytes], client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    video = video_of(endpoint, "0.mp4", CONTENT)
    endpoint.files["0.mp4"] = spoil(CONTENT)
    with pytest.raises(DownloadFailed):
        client.download(video, tmp_path / "clip.mp4")
    assert not (tmp_path / "clip.mp4").exists()
    if len(endpoint.files["0.mp4"]) >= len(CONTENT):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_link_that_has_expired_says_what_to_do(
    status: int, client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    video = video_of(endpoint, "0.mp4", CONTENT)
    endpoint.file_faults["0.mp4"] = [("status", status)]
    with pytest.raises(DownloadFailed, match="same job_id") as caught:
        client.download(video, tmp_path / "clip.mp4")
    assert not caught.value.retryable
    assert len(endpoint.requests("file")) == 1


@pytest.mark.parametrize("drips", [False, True], ids=["says nothing", "a byte now and then"])
def test_a_storage_that_hangs_costs_the_time_that_was_given(
    drips: bool, client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n"

    def serve(connection: socket.socket, _request: bytes) -> None:
        if drips:
            server.drip(connection, iter([head, *[b"a"] * 1000]), 0.02)
        else:
            server.hold()

    with Server(serve) as server, takes_at_most(4.5):
        video = {**video_of(endpoint, "0.mp4", CONTENT), "video_url": server.url()}
        with pytest.raises(DownloadFailed):
            client.download(video, tmp_path / "clip.mp4", timeout_s=0.5)


def test_a_redirect_to_the_file_is_followed(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    video = video_of(endpoint, "0.mp4", CONTENT)
    moved = response(status="302 Found", headers=f"Location: {video['video_url']}")
    with Server(lambda connection, _: connection.sendall(moved)) as server:
        target = client.download({**video, "video_url": server.url()}, tmp_path / "clip.mp4")
    assert target.read_bytes() == CONTENT


def test_a_file_in_the_answer_needs_no_storage(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    inline = {**video_of(endpoint, "0.mp4", CONTENT), "video_url": None}
    whole = {**inline, "video_base64": base64.b64encode(CONTENT).decode()}
    assert client.download(whole, tmp_path / "clip.mp4").read_bytes() == CONTENT
    assert endpoint.requests("file") == []
    for text in ("no base64!", base64.b64encode(OTHER).decode()):
        with pytest.raises(DownloadCorrupt):
            client.download({**inline, "video_base64": text}, tmp_path / "other.mp4")
    with pytest.raises(DownloadFailed, match="has no video_url"):
        client.download(inline, tmp_path / "other.mp4")


def test_a_file_on_the_disk_is_a_local_workers_alone(
    connect: Callable[..., Any], client: Any, endpoint: PaidEndpoint, tmp_path: Path
) -> None:
    source = tmp_path / "made here.mp4"
    source.write_bytes(CONTENT)
    video = {**video_of(endpoint, "0.mp4", CONTENT), "video_url": source.as_uri()}
    local = connect(base_url="http://localhost:1")
    assert local.download(video, tmp_path / "clip.mp4").read_bytes() == CONTENT
    with pytest.raises(DownloadFailed, match="configure a bucket"):
        client.download(video, tmp_path / "other.mp4")
    source.unlink()
    with pytest.raises(DownloadFailed, match="configure a bucket"):
        local.download(video, tmp_path / "other.mp4")


def test_files_beside_the_video_are_fetched_too(client: Any, endpoint: PaidEndpoint, tmp_path: Path) -> None:
    endpoint.files["0.jpg"] = b"a poster"
    video = {**video_of(endpoint, "0.mp4", CONTENT), "thumbnail_url": endpoint.file_url("0.jpg")}
    endpoint.file_faults["0.jpg"] = [("status", 503), ("cut", 3)]
    assert client.download(video, tmp_path / "clip.jpg", file="thumbnail").read_bytes() == b"a poster"
    with pytest.raises(DownloadFailed, match="frames_url"):
        client.download(video, tmp_path / "clip.zip", file="frames")
