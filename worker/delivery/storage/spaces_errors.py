"""The boundary to boto3: whatever an upload raises becomes UploadFailed, once.

The message names the setting to check and holds no host name. The log line holds the server's error code, status and
request id, which its operator will ask for, and nothing else that the server wrote.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, SSLError
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from worker.base.errors import UploadFailed

logger = logging.getLogger(__name__)

_KEYS = (
    "the storage refused the upload: check DIGITAL_OCEAN_BUCKET_ACCESS_KEY and DIGITAL_OCEAN_BUCKET_SECRET_KEY, and "
    "that this key may read and write objects of the bucket and set their ACL (STORAGE_ACL)"
)
_BUCKET = (
    "the storage has no such bucket or object: check DIGITAL_OCEAN_BUCKET_NAME and the region in "
    "DIGITAL_OCEAN_ENDPOINT_URL"
)
_REGION = "the bucket is in another region: check DIGITAL_OCEAN_ENDPOINT_URL and DIGITAL_OCEAN_REGION"
_ACL = "the bucket takes no ACLs: allow object ACLs on it, which STORAGE_ACL needs"
_QUOTA = "the storage has no space left: free space in the bucket or raise its quota, then send the job again"
_CLOCK = (
    "the storage refused the upload because the worker's clock is wrong: send the job again to reach another worker"
)
_DAMAGED = "the upload was damaged on its way to the storage: send the job again"
_DROPPED = "the storage dropped the upload half-way: send the job again"
_LATER = "the storage was busy or out of order: send the job again later"
_SILENT = "the storage did not answer: check DIGITAL_OCEAN_ENDPOINT_URL, then send the job again"
_TLS = "the storage's TLS certificate is not trusted: check DIGITAL_OCEAN_ENDPOINT_URL"
_NOT_S3 = "the storage gave an answer that is not S3: check DIGITAL_OCEAN_ENDPOINT_URL"
_SETTINGS = "the upload could not be sent: check the DIGITAL_OCEAN_* settings"
_UNREADABLE = "the encoded file could not be read on the worker: send the job again"
_OTHER = "the storage refused the upload: check the DIGITAL_OCEAN_* settings and STORAGE_ACL"

_BY_CODE = {
    "NoSuchBucket": _BUCKET,
    "NoSuchUpload": _DROPPED,
    "InvalidPart": _DROPPED,
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "AccessControlListNotSupported": _ACL,
    "QuotaExceeded": _QUOTA,
    "InsufficientCapacity": _QUOTA,
    "RequestTimeTooSkewed": _CLOCK,
    "BadDigest": _DAMAGED,
    "InvalidDigest": _DAMAGED,
    "XAmzContentSHA256Mismatch": _DAMAGED,
    "IncompleteBody": _DAMAGED,
    "RequestTimeout": _SILENT,
    "SlowDown": _LATER,
}
_BY_STATUS = {301: _REGION, 307: _REGION, 401: _KEYS, 403: _KEYS, 404: _BUCKET, 429: _LATER, 507: _QUOTA}
# What an upload can raise: responses that are errors, everything botocore and boto3 define, a response that cannot be
# parsed, what urllib3 lets through, the disk, and a redirect that botocore follows until the stack is used up.
STORAGE_FAILURES = (ClientError, BotoCoreError, Boto3Error, ResponseParserError, HTTPError, OSError, RecursionError)
_TOKEN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


@contextmanager
def upload_errors(key: str) -> Iterator[None]:
    """Everything that boto3 or the disk raises inside leaves as UploadFailed, after one line in the log."""
    try:
        yield
    except STORAGE_FAILURES as failure:
        logger.warning("the upload of %s failed: %s", key, facts_of(failure))
        raise UploadFailed(_advice(failure)) from failure


def not_s3(field: str) -> UploadFailed:
    """The error for a response without a field that every S3 server sends."""
    logger.warning("the storage's answer has no %s", field)
    return UploadFailed(_NOT_S3)


def facts_of(failure: BaseException) -> str:
    """Type, and for an answered request its status, error code and request id; no address and no free text."""
    if not isinstance(failure, ClientError):
        return type(failure).__name__
    return f"status {_status(failure)}, code {_code(failure)}, request id {_request_id(failure)}"


def is_no_such_upload(failure: Exception) -> bool:
    return isinstance(failure, ClientError) and _code(failure) == "NoSuchUpload"


def is_not_found(failure: ClientError) -> bool:
    return _status(failure) == 404


def _advice(failure: Exception) -> str:
    if isinstance(failure, ClientError):
        status = _status(failure)
        known = _BY_CODE.get(_code(failure)) or _BY_STATUS.get(status)
        return known if known is not None else (_LATER if status >= 500 else _OTHER)
    if isinstance(failure, RecursionError):
        return _REGION
    if isinstance(failure, SSLError):
        return _TLS
    if isinstance(failure, ResponseParserError):
        return _NOT_S3
    if isinstance(failure, (BotoConnectionError, HTTPClientError, HTTPError, ConnectionError, TimeoutError)):
        return _SILENT
    return _UNREADABLE if isinstance(failure, OSError) else _SETTINGS


def _status(failure: ClientError) -> int:
    return int(failure.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _code(failure: ClientError) -> str:
    return _token(failure.response.get("Error", {}).get("Code"))


def _request_id(failure: ClientError) -> str:
    return _token(failure.response.get("ResponseMetadata", {}).get("RequestId"))


def _token(value: object) -> str:
    """A value from the server, or `unknown` where it is not one plain word: it may go into the log."""
    return value if isinstance(value, str) and _TOKEN.fullmatch(value) else "unknown"
