"""The settings of the marks that say a file was made by AI."""

from __future__ import annotations

import re

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings


class MarkSettings(BaseSettings):
    """A part of `worker.base.settings.Settings`, which reads the environment."""

    ai_mark: bool = Field(True, description="Mark every file as made by AI; false: no marks, `provenance` is null")
    c2pa_cert_chain: str | None = Field(
        None, description="Certificates that sign, the signer's own first: PEM, or the path of a PEM file"
    )
    c2pa_private_key: SecretStr | None = Field(
        None, description="The key of the first certificate: PEM without a passphrase, or the path of a PEM file"
    )
    c2pa_tsa_url: str | None = Field(
        None, description="RFC 3161 time stamp authority; one that does not answer within 5 s is a warning"
    )
    aigc_producer: str | None = Field(
        None,
        max_length=200,
        description="`ContentProducer` of China's AIGC label (GB 45438-2025); unset: no label",
    )

    @field_validator("c2pa_tsa_url")
    @classmethod
    def _tsa_is_http(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/\s]+", value):
            raise ValueError("must begin with http:// or https:// and name a host")
        return value
