"""The facade as OpenAI's own client sees it, in front of RunPod's API on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from tests.kits import client_cases
from tests.kits.client_cases import SECRET
from tests.kits.endpoint_double import completed, failed, in_progress, in_queue
from tests.kits.facade_kit import FacadeServer, ended, sent
from tests.kits.facade_kit import facade as facade  # fixtures
from tests.kits.facade_kit import http as http
from tests.kits.facade_kit import speak as speak
from tests.kits.loopback import wait_until
from tests.kits.paid_endpoint import PaidEndpoint, answer_of, video_of
from videogen_client.serve.__main__ import main as serve

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def test_openais_client_makes_fetches_lists_and_deletes_a_video(
    speak: Callable[..., openai.OpenAI], endpoint: PaidEndpoint
) -> None:
    client = speak()
    video = client.videos.create_and_poll(prompt="a red fox", model="wan2.2-a14b", size="1280x720", seconds="5")  # type: ignore[arg-type]
    assert (video.status, video.progress, video.error, video.model) == ("completed", 100, None, "wan2.2-a14b")
    assert sent(endpoint) == {
        "prompt": "a red fox",
        "model": "a14b",
        "width": 1280,
        "height": 720,
        "duration_seconds": 5.0,
        "job_id": video.id,
    }
    assert client.videos.download_content(video.id).read() == endpoint.files[f"{video.id}.mp4"]
    assert [each.id for each in client.videos.list()] == [video.id]
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)
    assert endpoint.paid == {video.id: 1}


def test_a_job_that_fails_says_why(http: httpx.Client, endpoint: PaidEndpoint) -> None:
    endpoint.status = lambda job_id: {  # type: ignore[method-assign]
        "id": job_id,
        **failed('{"code": "invalid_request", "message": "width: too small", "path": "width", "retryable": false}'),
    }
    video = ended(http, http.post("/v1/videos", json={"prompt": "a fox", "size": "16x16"}).json()["id"])
    assert video["status"] == "failed"
    assert video["error"] == {"code": "invalid_request", "message": "width: too small", "param": "size"}
    answer = http.get(f"/v1/videos/{video['id']}/content")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_ready")


def test_keys_are_asked_for_and_keep_videos_apart(speak: Callable[..., openai.OpenAI], http: httpx.Client) -> None:
    video = speak().videos.create(prompt="a fox")
    with pytest.raises(openai.AuthenticationError):
        speak("key-c").videos.list()
    other = speak("key-b")
    assert list(other.videos.list()) == []
    for call in (other.videos.retrieve, other.videos.delete, other.videos.download_content):
        with pytest.raises(openai.NotFoundError):
            call(video.id)
    assert http.get("/metrics", headers={"Authorization": "Bearer no"}).status_code == 401
    assert http.get("/health", headers={"Authorization": ""}).json() == {"status": "ok"}


def test_a_facade_that_starts_again_goes_on(endpoint: PaidEndpoint, tmp_path: Path) -> None:
    """Also with a job that the endpoint has forgotten meanwhile: the worker's journal has its video."""
    endpoint.status = lambda job_id: {"id": job_id, **in_queue()}  # type: ignore[method-assign]
    headers = {"Authorization": "Bearer key-a"}
    with FacadeServer(tmp_path, endpoint.url) as server, httpx.Client(base_url=server.url, headers=headers) as http:
        video_id = http.post("/v1/videos", json={"prompt": "a fox"}).json()["id"]
    del endpoint.status
    endpoint.forget()
    with FacadeServer(tmp_path, endpoint.url) as server, httpx.Client(base_url=server.url, headers=headers) as http:
        assert ended(http, video_id)["status"] == "completed"
        assert http.get(f"/v1/videos/{video_id}/content").content == endpoint.files[f"{video_id}.mp4"]
    assert endpoint.paid == {video_id: 1}


def test_progress_and_a_job_that_is_deleted_while_it_runs(http: httpx.Client, endpoint: PaidEndpoint) -> None:
    endpoint.status = lambda job_id: {"id": job_id, **in_progress(42)}  # type: ignore[method-assign]
    video_id = http.post("/v1/videos", json={"prompt": "a fox"}).json()["id"]
    wait_until(lambda: http.get(f"/v1/videos/{video_id}").json()["progress"] == 42, 30)
    assert http.get(f"/v1/videos/{video_id}").json()["status"] == "in_progress"
    assert http.delete(f"/v1/videos/{video_id}").json() == {"id": video_id, "object": "video.deleted", "deleted": True}
    assert [each.job_id for each in endpoint.requests("cancel")] == [endpoint.requests("status")[0].job_id]
    assert http.get(f"/v1/videos/{video_id}").status_code == 404


def test_the_files_beside_a_video(http: httpx.Client, endpoint: PaidEndpoint) -> None:
    endpoint.files |= {"a.jpg": b"a poster", "a.preview.webp": b"a preview"}
    urls = {"thumbnail_url": endpoint.file_url("a.jpg"), "preview_url": endpoint.file_url("a.preview.webp")}
    made = video_of(
        endpoint, "a.webm", b"a video", resolution="832x480", duration_seconds=5.0625, warnings=["w"], **urls
    )
    endpoint.status = lambda job_id: {"id": job_id, **completed(answer_of(made))}  # type: ignore[method-assign]
    video = ended(http, http.post("/v1/videos", json={"prompt": "a fox"}).json()["id"])
    assert {name: video[name] for name in ("size", "seconds", "seed", "warnings")} == {
        "size": "832x480",
        "seconds": "5.0625",
        "seed": 7,
        "warnings": ["w"],
    }
    content = f"/v1/videos/{video['id']}/content"
    found = {name: http.get(content, params={"variant": name}) for name in ("video", "thumbnail", "spritesheet")}
    assert {name: (each.content, each.headers["Content-Type"]) for name, each in found.items()} == {
        "video": (b"a video", "video/webm"),
        "thumbnail": (b"a poster", "image/jpeg"),
        "spritesheet": (b"a preview", "image/webp"),
    }
    again = http.get(content, headers={"Range": "bytes=2-"})
    assert (again.status_code, again.content) == (206, b"video")
    assert len(endpoint.requests("file")) == 3
    assert http.get(content, params={"variant": "poster"}).json()["error"]["param"] == "variant"


def test_an_endpoint_that_fails_is_not_the_callers_fault(http: httpx.Client, endpoint: PaidEndpoint) -> None:
    endpoint.refuse["run"] = [503] * 4
    down = http.post("/v1/videos", json={"prompt": "a fox"})
    assert (down.status_code, down.json()["error"]["type"]) == (503, "server_error")
    assert down.headers["Retry-After"] == "5"
    endpoint.refuse["run"] = [401]
    assert http.post("/v1/videos", json={"prompt": "a fox"}).status_code == 502
    assert http.get("/v1/videos").json()["data"] == []
    assert http.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"


def test_pages_of_a_list(speak: Callable[..., openai.OpenAI], http: httpx.Client) -> None:
    client = speak()
    made = [client.videos.create(prompt=f"fox {number}").id for number in range(5)]
    assert [each.id for each in client.videos.list(limit=2)] == made[::-1]
    assert [each.id for each in client.videos.list(limit=2, order="asc", after=made[1])] == made[2:]
    page = http.get("/v1/videos", params={"limit": 2}).json()
    assert (page["has_more"], page["first_id"], page["last_id"]) == (True, made[4], made[3])
    assert http.get("/v1/videos", params={"limit": 0}).json()["error"]["param"] == "limit"


def test_metrics_count_by_route_and_hold_no_content(http: httpx.Client) -> None:
    video_id = http.post("/v1/videos", json={"prompt": "a secret fox"}).json()["id"]
    ended(http, video_id)
    text = http.get("/metrics").text
    assert 'videogen_facade_requests_total{method="POST",route="/v1/videos",status="200"} 1.0' in text
    assert 'route="/v1/videos/{video_id}"' in text
    assert 'videogen_facade_videos_ended_total{status="completed"} 1.0' in text
    assert "secret" not in text
    assert video_id not in text


def signed(event: dict[str, Any]) -> dict[str, Any]:
    """What a worker with this secret posts."""
    body = json.dumps(event).encode()
    return {"content": body, "headers": client_cases.signed(body)}


def test_webhooks_move_a_video_on_where_they_are_genuine(endpoint: PaidEndpoint, tmp_path: Path) -> None:
    endpoint.status = lambda job_id: {"id": job_id, **in_queue()}  # type: ignore[method-assign]
    address = "https://facade.example.com/webhooks/videogen"
    with (
        FacadeServer(tmp_path, endpoint.url, keys=(), secret=SECRET, webhook_url=address) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        video_id = http.post("/v1/videos", json={"prompt": "a fox"}).json()["id"]
        assert sent(endpoint)["webhook_url"] == address
        progress = {"type": "progress", "job_id": video_id, "progress": 40, "status": "generating", "preview_url": "u"}
        made = video_of(endpoint, "a.mp4", b"a video", job_id=video_id)
        forged = {"content": signed(progress)["content"], "headers": signed({"type": "progress"})["headers"]}
        assert http.post("/webhooks/videogen", **forged).status_code == 401
        assert http.get(f"/v1/videos/{video_id}").json()["progress"] == 0
        assert http.post("/webhooks/videogen", **signed(progress)).status_code == 200
        video = http.get(f"/v1/videos/{video_id}").json()
        assert (video["status"], video["progress"], video["preview_url"]) == ("in_progress", 40, "u")
        for event in ({"type": "completed", "data": made}, {"type": "failed", "data": {"job_id": "other"}}):
            assert http.post("/webhooks/videogen", **signed(event)).status_code == 200
        assert http.get(f"/v1/videos/{video_id}").json()["status"] == "completed"
        assert http.get(f"/v1/videos/{video_id}/content").content == b"a video"


def test_clients_end_an_idle_connection_before_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a request may meet a connection that is being closed: the benchmark saw that with uvicorn's own 5 s."""
    chosen: dict[str, Any] = {}
    monkeypatch.setattr(uvicorn, "run", lambda _app, **options: chosen.update(options))
    assert serve(["--worker", "http://localhost:1", "--state", str(tmp_path)]) == 0
    of_httpx, of_litellm = httpx.Limits().keepalive_expiry, 120
    assert of_httpx is not None
    assert chosen["timeout_keep_alive"] > max(of_httpx, of_litellm)


def test_the_cache_keeps_to_its_size(endpoint: PaidEndpoint, tmp_path: Path) -> None:
    """20 kB a file: of three only the last two stay, and the first is fetched again."""
    with (
        FacadeServer(tmp_path, endpoint.url, keys=(), cache_bytes=50_000) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        ids = [http.post("/v1/videos", json={"prompt": "a fox"}).json()["id"] for _ in range(3)]
        for video_id in (*ids, ids[0]):
            ended(http, video_id)
            content = http.get(f"/v1/videos/{video_id}/content").content
            assert content == endpoint.files[f"{video_id}.mp4"]
            assert sum(path.stat().st_size for path in (tmp_path / "files").iterdir()) <= 50_000
    assert len(endpoint.requests("file")) == 4
