"""What Veo on Google Cloud has of its own: its fields, its credentials, videos in the operation or in a bucket."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.kits.router_kit import ENVIRON, backend_table, policy_of, router_of
from tests.kits.service_double import FakeJob, Order
from tests.kits.services import FalDouble, GoogleDouble
from videogen_client.router import PolicyInvalid
from videogen_client.router.backends import make_backends

REQUEST = {"prompt": "a fox", "tier": "draft"}
PICTURE = "data:image/png;base64,aWk="


@pytest.fixture
def veo() -> Iterator[GoogleDouble]:
    with GoogleDouble() as double:
        yield double


@pytest.fixture
def service_account(veo: GoogleDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application default credentials of a machine."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    account = {"type": "service_account", "project_id": "zoo", "client_email": "fox@zoo", "private_key": pem}
    path = tmp_path / "account.json"
    path.write_text(json.dumps({**account, "token_uri": f"{veo.url}/token"}))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", veo.url)
    for name in ("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION"):
        monkeypatch.delenv(name, raising=False)


async def made(tmp_path: Path, tables: dict[str, Any], **fields: Any) -> Any:
    async with router_of(policy_of(tmp_path / "store", tables)) as router:
        job = await router.result(await router.submit({**REQUEST, **fields}), timeout_s=60)
        if job.status == "completed":
            await router.download(job.id, tmp_path / "fox.mp4")
        return job


async def test_a_request_has_the_fields_of_veo(veo: GoogleDouble, tmp_path: Path) -> None:
    table = backend_table(veo, modes=["first_last"], audio=True, parameters={"person_generation": "dont_allow"})
    pictures = {"reference_image_url": PICTURE, "last_image_url": "gs://bucket/last.jpg"}
    await made(tmp_path, {"veo": table}, width=832, height=480, duration_seconds=8.0, seed=7, audio=True, **pictures)
    (job,) = veo.jobs.values()
    assert job.fields == {
        "prompt": "a fox",
        "image": {"bytesBase64Encoded": base64.b64encode(b"ii").decode(), "mimeType": "image/png"},
        "lastFrame": {"gcsUri": "gs://bucket/last.jpg", "mimeType": "image/jpeg"},
        "sampleCount": 1,
        "durationSeconds": 8,
        "aspectRatio": "16:9",
        "resolution": "720p",
        "seed": 7,
        "generateAudio": True,
        "personGeneration": "dont_allow",
    }


async def test_a_picture_that_veo_does_not_fetch_goes_elsewhere(veo: GoogleDouble, tmp_path: Path) -> None:
    with FalDouble() as spare:
        tables = {"veo": backend_table(veo, modes=["image"]), "spare": backend_table(spare, modes=["image"])}
        job = await made(tmp_path, tables, reference_image_url="https://example.com/fox.png")
    assert job.result["backend"] == "spare"
    assert job.route[0]["why"] == "takes pictures at gs:// addresses and as data URIs"
    assert veo.requests == 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"extras": {"veo": {"no_such_field": 1}}}, "ValidationError: a field that the SDK does not take"),
        ({"reference_image_url": "data:image/png;base64,?"}, "Error: a field that the SDK does not take"),
    ],
)
async def test_a_field_that_the_sdk_does_not_take_is_the_requests_fault(
    veo: GoogleDouble, tmp_path: Path, fields: dict[str, Any], why: str
) -> None:
    job = await made(tmp_path, {"veo": backend_table(veo, modes=["text", "image"])}, **fields)
    assert (job.status, job.error["code"], job.error["message"]) == ("failed", "invalid_request", why)
    assert veo.requests == 0


@pytest.mark.usefixtures("service_account")
async def test_with_the_credentials_of_the_machine_a_video_comes_from_a_bucket(
    veo: GoogleDouble, tmp_path: Path
) -> None:
    table = backend_table(veo, api_key_env=None, parameters={"output_gcs_uri": "gs://bucket/videos"})
    job = await made(tmp_path, {"veo": table})
    (made_by_veo,) = veo.jobs
    assert job.result["video_url"] == f"gs://bucket/videos/{made_by_veo}.mp4"
    assert "projects/zoo/locations/global" in job.result["details"]["operation"]
    assert (tmp_path / "fox.mp4").read_bytes() == veo.video


@pytest.mark.usefixtures("service_account")
async def test_a_token_that_is_refused_proves_that_nothing_was_submitted(veo: GoogleDouble, tmp_path: Path) -> None:
    veo.read_faults = [401]
    with FalDouble() as spare:
        tables = {"veo": backend_table(veo, api_key_env=None), "spare": backend_table(spare)}
        job = await made(tmp_path, tables)
    assert job.result["backend"] == "spare"
    assert job.route[0]["outcome"] == "refused: RefreshError"


async def test_a_video_that_was_filtered_is_not_asked_for_elsewhere(tmp_path: Path) -> None:
    class Filtering(GoogleDouble):
        def _shown(self, job: FakeJob) -> dict[str, Any]:
            reasons = {"raiMediaFilteredCount": 1, "raiMediaFilteredReasons": ["..."]}
            return {"done": True, "response": reasons} if job.state == "completed" else super()._shown(job)

    with Filtering() as veo, FalDouble() as spare:
        table = {**backend_table(spare), "kind": "google", "model": veo.model, "base_url": veo.base_url}
        job = await made(tmp_path, {"veo": table, "spare": backend_table(spare)})
    assert job.error["code"] == "refused_by_model"
    assert spare.jobs == {}


async def test_a_job_that_runs_cannot_be_cancelled(veo: GoogleDouble, tmp_path: Path) -> None:
    veo.default = Order(seconds=0.5)
    with FalDouble() as spare:
        tables = {"veo": backend_table(veo, patience_s=0.1), "spare": backend_table(spare)}
        job = await made(tmp_path, tables)
    assert job.result["backend"] == "veo"
    assert spare.jobs == {}


def test_credentials_that_are_missing_are_a_problem_of_the_policy(
    veo: GoogleDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    policy = policy_of(tmp_path / "store", {"veo": backend_table(veo, api_key_env=None)})
    with pytest.raises(PolicyInvalid, match=r"backends\.veo\.api_key_env: is missing, and there are no"):
        make_backends(policy, ENVIRON)


def test_a_bucket_that_the_key_cannot_read_is_a_problem_of_the_policy(veo: GoogleDouble, tmp_path: Path) -> None:
    table = backend_table(veo, parameters={"output_gcs_uri": "gs://bucket/videos"})
    with pytest.raises(PolicyInvalid, match=r"backends\.veo\.parameters\.output_gcs_uri: needs application default"):
        make_backends(policy_of(tmp_path / "store", {"veo": table}), ENVIRON)
