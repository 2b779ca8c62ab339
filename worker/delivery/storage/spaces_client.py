"""The S3 client of the worker: boto3 with the settings that real servers need, which reads nothing of its surroundings.

Credentials, region and endpoint are those of the caller alone: neither AWS_* and proxy variables, nor ~/.aws, nor a
metadata server is read.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import boto3.session
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from worker.base.errors import SettingsError
from worker.delivery.storage.spaces_place import Place
from worker.delivery.storage.spaces_wire import Wire

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TOTAL_MAX_ATTEMPTS = 5  # with botocore's backoff of at most 1, 2, 4 and 8 s between them
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0


def make_client(
    place: Place,
    access_key: str,
    secret_key: str,
    *,
    total_max_attempts: int = TOTAL_MAX_ATTEMPTS,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
    ca_bundle: Path | None = None,
) -> S3Client:
    """An S3 client that reads nothing of its surroundings.

    A connection takes at most `connect_timeout_s`, silence on it `read_timeout_s`. `ca_bundle` is a PEM file of the
    authorities to trust instead of botocore's own. Raises SettingsError where botocore
    refuses the place.
    """
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if place.path_style else "virtual"},
        # Real servers (Ceph over TLS, Spaces) reject the checksum trailers that boto3 sends by default since 1.36.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": total_max_attempts},
        proxies={},  # None would ask the environment
    )
    try:
        client = boto3.session.Session(botocore_session=_isolated_session()).client(
            "s3",
            endpoint_url=place.endpoint_url,
            region_name=place.region,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            verify=True,  # None would ask AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE
            config=config,
        )
    except (BotoCoreError, ValueError) as failure:
        raise SettingsError([f"DIGITAL_OCEAN_ENDPOINT_URL: cannot be used ({type(failure).__name__})"]) from None
    wire = Wire(connect_s=connect_timeout_s, silence_s=read_timeout_s, ca_bundle=ca_bundle)
    client.meta.events.register_last("before-send.s3", wire)  # type: ignore[arg-type]
    return client


def _isolated_session() -> botocore.session.Session:
    """A session whose every variable has its default: no environment, no profile, no file of the user."""
    variables = {
        name: (None, None, default, convert)
        for name, (_, _, default, convert) in botocore.session.Session.SESSION_VARIABLES.items()
    }
    for file in ("config_file", "credentials_file"):
        variables[file] = (None, None, None, None)
    session = botocore.session.Session(session_vars=variables)
    session.get_component("config_store").set_config_variable("s3", None)
    session.register_component("data_loader", _loader())
    return session


@functools.cache
def _loader() -> botocore.loaders.Loader:
    """Botocore's description of S3, read once for all clients: it takes 0.1 s of CPU time."""
    return botocore.loaders.create_loader()
