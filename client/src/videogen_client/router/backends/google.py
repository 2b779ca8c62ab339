"""Google's Veo by the Gen AI SDK, which has it on Google Cloud alone. `model` is such as `veo-3.1-generate-001`.

With `api_key_env` by that key, else by the application default credentials, in the project of GOOGLE_CLOUD_PROJECT
(or theirs) and at GOOGLE_CLOUD_LOCATION (`global`). It has no idempotency key, no list and no cancel: a lost answer
stays unknown, and a job that runs ends by itself. Without `output_gcs_uri` among the parameters the video is part of
the operation: it has no address.
"""

from __future__ import annotations

import asyncio
import base64
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import google.auth
import google.auth.transport.requests
import httpx
from google import genai
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.genai import types

from ..backend import Capabilities, Clip, State
from ..errors import PolicyInvalid, Problem, Refused, Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import FRESH, Service, reading, submitting, tls

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_STORAGE = "https://storage.googleapis.com"
_INVALID_ARGUMENT = 3  # of gRPC: the request, or a prompt that breaks the rules


@dataclass(frozen=True)
class _OfVeo(Capabilities):
    def why_not(self, request: VideoRequest) -> str | None:
        pictures = (request.reference_image_url, request.last_image_url)
        if any(each is not None and not each.startswith(("gs://", "data:")) for each in pictures):
            return "takes pictures at gs:// addresses and as data URIs"
        return super().why_not(request)


class Google(Service):
    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        """Raises PolicyInvalid where there is neither a key nor credentials, and for a bucket a key cannot read."""
        super().__init__(name, table, prices, key)
        self._credentials: Any = None
        access: dict[str, Any] = {"api_key": key}
        if key is not None and "output_gcs_uri" in table.parameters:
            message = "needs application default credentials, without api_key_env: a key reads no bucket"
            raise PolicyInvalid([Problem(f"backends.{name}.parameters.output_gcs_uri", message)])
        if key is None:
            try:
                self._credentials, project = google.auth.default(scopes=_SCOPES)
            except DefaultCredentialsError as failure:
                message = "is missing, and there are no application default credentials"
                raise PolicyInvalid([Problem(f"backends.{name}.api_key_env", message)]) from failure
            project = os.environ.get("GOOGLE_CLOUD_PROJECT", project)
            location = os.environ.get("GOOGLE_CLOUD_LOCATION", "global")
            access = {"credentials": self._credentials, "project": project, "location": location}
        # With a client of httpx it repeats nothing; its other transport would submit a second job.
        self._http = [httpx.AsyncClient(verify=tls()), httpx.AsyncClient(verify=tls(), headers=FRESH)]
        tls_of_others: dict[str, Any] = {"client_args": {"verify": tls()}, "async_client_args": {"ssl": tls()}}
        self._client, self._submissions = (
            genai.Client(
                vertexai=True,
                http_options=types.HttpOptions(
                    base_url=table.base_url, timeout=30_000, httpx_async_client=each, **tls_of_others
                ),
                **access,
            )
            for each in self._http
        )

    def capabilities(self) -> Capabilities:
        return _OfVeo(**vars(super().capabilities()))

    async def submit(self, request: VideoRequest, _key: str, /) -> str:
        try:
            source = types.GenerateVideosSource(prompt=request.prompt, image=_image_of(request.reference_image_url))
            config = types.GenerateVideosConfig(**self._config_of(request))
        except ValueError as failure:
            raise Refused(f"{type(failure).__name__}: a field that the SDK does not take", retryable=False) from failure
        with submitting():
            try:
                made = await self._submissions.aio.models.generate_videos(
                    model=self.model, source=source, config=config
                )
            except GoogleAuthError as failure:  # the token is fetched before the request
                raise Refused(type(failure).__name__) from failure
            return str(made.name)

    def _config_of(self, request: VideoRequest) -> dict[str, Any]:
        """Raises ValueError."""
        own = {
            "number_of_videos": 1,
            "negative_prompt": request.negative_prompt,
            "duration_seconds": round(request.duration_seconds),
            "aspect_ratio": _aspect_of(request),
            "resolution": _resolution_of(request),
            "seed": request.seed,
            "generate_audio": request.audio if self.table.audio else None,
            "last_frame": _image_of(request.last_image_url),
        }
        return self.fields(request, own)

    async def status(self, handle: str) -> State:
        operation = await self._operation(handle)
        if not operation.done:
            return State("running")
        if operation.error:
            code, message = operation.error.get("code"), str(operation.error.get("message") or "the operation failed")
            return State("failed", error=f"{code}: {message[:300]}", retryable=code != _INVALID_ARGUMENT)
        if operation.response is None or not operation.response.generated_videos:
            filtered = operation.response is not None and bool(operation.response.rai_media_filtered_count)
            error = "the video was filtered" if filtered else "the operation has no video"
            return State("failed", error=error, retryable=not filtered)
        return State("completed")

    async def cancel(self, handle: str) -> State:
        return await self.status(handle)

    async def result(self, handle: str) -> Clip:
        video = await self._video(handle)
        return Clip(video.uri or "", {"operation": handle, "model": self.model, "mime_type": video.mime_type})

    async def download(self, clip: Clip, path: Path) -> None:
        if clip.url:
            content = await self._stored(clip.url)
        else:
            content = (await self._video(clip.details["operation"])).video_bytes or b""
        if not content:
            raise Unreadable("the operation has no video")
        path.write_bytes(content)

    async def _operation(self, handle: str) -> types.GenerateVideosOperation:
        with reading():
            return await self._client.aio.operations.get(types.GenerateVideosOperation.model_validate({"name": handle}))

    async def _video(self, handle: str) -> types.Video:
        response = (await self._operation(handle)).response
        if response is None or not response.generated_videos or response.generated_videos[0].video is None:
            raise Unreadable("the operation has no video")
        return response.generated_videos[0].video

    async def _stored(self, uri: str) -> bytes:
        """From Cloud Storage, with the credentials of the jobs: a key opens no bucket."""
        bucket, _, name = uri.removeprefix("gs://").partition("/")
        host = os.environ.get("STORAGE_EMULATOR_HOST", _STORAGE)  # as Google's own clients have it
        if self._credentials is None:
            raise Unreadable("a key reads no bucket")
        with reading():
            await asyncio.to_thread(self._credentials.refresh, google.auth.transport.requests.Request())
            headers = {"Authorization": f"Bearer {self._credentials.token}"}
            url = f"{host}/storage/v1/b/{bucket}/o/{quote(name, safe='')}?alt=media"
            reply = await self._http[0].get(url, headers=headers, timeout=300)
            return reply.raise_for_status().content

    async def close(self) -> None:
        for each in self._http:
            await each.aclose()


def _image_of(url: str | None) -> types.Image | None:
    """Raises ValueError."""
    if url is None:
        return None
    if url.startswith("gs://"):
        return types.Image(gcs_uri=url, mime_type=mimetypes.guess_type(url)[0] or "image/png")
    head, _, content = url.partition(",")
    kind = head.removeprefix("data:").partition(";")[0] or "image/png"
    return types.Image(image_bytes=base64.b64decode(content, validate=True), mime_type=kind)


def _aspect_of(request: VideoRequest) -> str | None:
    if request.width is None or request.height is None:
        return None
    return "16:9" if request.width >= request.height else "9:16"


def _resolution_of(request: VideoRequest) -> str | None:
    """The smallest one that is not smaller than what is asked for."""
    if request.width is None or request.height is None:
        return None
    height = min(request.width, request.height)
    return "720p" if height <= 720 else "1080p" if height <= 1080 else "4k"
