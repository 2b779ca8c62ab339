"""The settings of where finished videos go: a bucket, or a folder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings

from worker.base import setting_texts as texts
from worker.base.errors import SettingsError

MAX_PRESIGN_EXPIRY_S = 7 * 24 * 3600  # AWS Signature Version 4 allows no more; servers return 403


@dataclass(frozen=True, slots=True)
class Bucket:
    """The four settings that name a bucket and open it."""

    endpoint_url: str
    name: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)


class StorageSettings(BaseSettings):
    """A part of `worker.base.settings.Settings`, which reads the environment."""

    storage_endpoint_url: str | None = Field(
        None,
        validation_alias=AliasChoices(
            "DIGITAL_OCEAN_ENDPOINT_URL", "SPACES_ENDPOINT_URL", "SPACES_ENDPOINT", "BUCKET_ENDPOINT_URL"
        ),
        description="The bucket's server, such as https://nyc3.digitaloceanspaces.com; the bucket may stand in it",
    )
    storage_access_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices(
            "DIGITAL_OCEAN_BUCKET_ACCESS_KEY",
            "SPACES_BUCKET_ACCESS_KEY",
            "SPACES_ACCESS_KEY",
            "SPACES_KEY",
            "BUCKET_ACCESS_KEY_ID",
        ),
        description="The key's id; it needs to write objects, set their ACL and read them back",
    )
    storage_secret_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices(
            "DIGITAL_OCEAN_BUCKET_SECRET_KEY",
            "SPACES_BUCKET_SECRET_KEY",
            "SPACES_SECRET_KEY",
            "SPACES_SECRET",
            "BUCKET_SECRET_ACCESS_KEY",
        ),
        description="The key itself",
    )
    storage_bucket: str | None = Field(
        None,
        validation_alias=AliasChoices(
            "DIGITAL_OCEAN_BUCKET_NAME", "SPACES_BUCKET_NAME", "SPACES_BUCKET", "BUCKET_NAME"
        ),
        description="The bucket. Unset: the one that the endpoint names, if it names one",
    )
    storage_public_url: str | None = Field(
        None,
        validation_alias=AliasChoices("DIGITAL_OCEAN_BUCKET_URL", "SPACES_BUCKET_URL"),
        description="Public or CDN base of the URLs given out. Unset: the bucket's own address",
    )
    storage_region: str | None = Field(
        None,
        validation_alias=AliasChoices("DIGITAL_OCEAN_REGION", "SPACES_REGION"),
        description="Unset: the region that the endpoint names, else us-east-1",
    )
    storage_acl: Annotated[Literal["public-read", "private"], BeforeValidator(texts.lower)] = Field(
        "public-read", description="private gives out presigned URLs"
    )
    presign_expiry_s: int = Field(
        86_400, ge=1, le=MAX_PRESIGN_EXPIRY_S, description="Seconds for which a presigned URL is good; at most 7 days"
    )
    output_dir: Path = Field(
        Path("./outputs"), description="Where videos go when no bucket is configured; URLs are then file://"
    )

    @property
    def storage_is_remote(self) -> bool:
        return self.storage_bucket is not None

    @property
    def bucket(self) -> Bucket:
        """Raises SettingsError where one of its four settings is missing."""
        endpoint_url, name = self.storage_endpoint_url, self.storage_bucket
        access_key, secret_key = self.storage_access_key, self.storage_secret_key
        if endpoint_url is None or name is None or access_key is None or secret_key is None:
            raise SettingsError(["storage is configured in part: set all four DIGITAL_OCEAN_* variables"])
        return Bucket(endpoint_url, name, access_key.get_secret_value(), secret_key.get_secret_value())

    @field_validator("storage_endpoint_url", "storage_public_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must begin with https:// (or http://) and name a host")
        return value
