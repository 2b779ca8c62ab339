"""Pure address work for S3-compatible storage: what people write as an endpoint, and where an object can be read.

Accepted for a bucket `videos`: `https://nyc3.digitaloceanspaces.com`, with a trailing slash, with a path
(`.../videos`), with the bucket in the host (`https://videos.nyc3.digitaloceanspaces.com`), and the address of its CDN
(`https://videos.nyc3.cdn.digitaloceanspaces.com`). All become the first.

Other servers: a leading `videos.` is removed only before `s3.` or `s3-`, because `minio.example.com` may well be the
server of a bucket `minio`; a last path segment that is the bucket is removed; any other path is a gateway's and stays.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from worker.base.errors import SettingsError

DEFAULT_REGION = "us-east-1"  # what S3 servers without regions expect in a signature

_SPACES_HOST = re.compile(r"(?:.+\.)?(?P<region>(?!cdn\.)[a-z0-9-]+)(?:\.cdn)?\.digitaloceanspaces\.com")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_HOST_LABEL = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_REGION = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket on a server. `endpoint_url` holds no bucket, no credentials and no trailing slash."""

    endpoint_url: str
    bucket: str
    region: str
    path_style: bool

    @property
    def bucket_url(self) -> str:
        """The base of the bucket's plain URLs, without a trailing slash."""
        scheme, _, rest = self.endpoint_url.partition("://")
        return f"{scheme}://{rest}/{self.bucket}" if self.path_style else f"{scheme}://{self.bucket}.{rest}"


def place_of(endpoint_url: str, bucket: str, region: str | None = None) -> Place:
    """The place that the settings name; `region` None: that of a Spaces endpoint, else `DEFAULT_REGION`.

    Raises SettingsError where the endpoint, the bucket or the region cannot be used.
    """
    try:
        parts = urlsplit(endpoint_url.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    problems = (
        [] if host else ["DIGITAL_OCEAN_ENDPOINT_URL: must be an address such as https://nyc3.digitaloceanspaces.com"]
    )
    if not _BUCKET.fullmatch(bucket):
        problems.append("DIGITAL_OCEAN_BUCKET_NAME: write the name alone, 3 to 63 letters, digits, dashes or dots")
    if region is not None and not _REGION.fullmatch(region):
        problems.append("DIGITAL_OCEAN_REGION: write a region such as nyc3")
    if problems or host is None:
        raise SettingsError(problems)
    spaces = _SPACES_HOST.fullmatch(host)
    if spaces:
        host, path = f"{spaces['region']}.digitaloceanspaces.com", ""
    else:
        host, path = _without_bucket(host, parts.path, bucket)
    authority = (f"[{host}]" if ":" in host else host) + (f":{port}" if port is not None else "")
    if region is None:
        region = spaces["region"] if spaces else DEFAULT_REGION
    return Place(f"{parts.scheme}://{authority}{path}", bucket, region, _needs_path_style(host, bucket))


def public_url(base_url: str, key: str) -> str:
    """The unsigned URL of an object below `base_url`, whose trailing slashes do not matter."""
    return f"{base_url.rstrip('/')}/{quote(key)}"


def _without_bucket(host: str, path: str, bucket: str) -> tuple[str, str]:
    rest = host.removeprefix(f"{bucket}.")
    if rest != host and rest.startswith(("s3.", "s3-")):
        host = rest
    path = path.rstrip("/")
    return host, path.removesuffix(f"/{bucket}").rstrip("/")


def _needs_path_style(host: str, bucket: str) -> bool:
    """Whether `bucket.host` cannot work as a host name.

    So it is for an IP address, for names of one machine or one private network (`localhost`, `minio`), and for a bucket
    whose name is not one label of a host name, which a wildcard certificate does not cover.
    """
    if "." not in host or host.endswith(".localhost") or not _HOST_LABEL.fullmatch(bucket):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
