"""How the texts of the environment's variables are read and judged; `worker.base.settings` says which are."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection

from worker.base import allowlist

MAX_GPUS = 8
PRELOADABLE = ("i2v", "t2v", "5b")
_SECRET_BYTES = range(24, 65)
REMOTE_STORAGE = {
    "storage_endpoint_url": "DIGITAL_OCEAN_ENDPOINT_URL",
    "storage_access_key": "DIGITAL_OCEAN_BUCKET_ACCESS_KEY",
    "storage_secret_key": "DIGITAL_OCEAN_BUCKET_SECRET_KEY",
    "storage_bucket": "DIGITAL_OCEAN_BUCKET_NAME",
}


def lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def tiling(value: object) -> object:
    word = lower(value)
    if word in ("1", "yes", "on"):
        return "true"
    return "false" if word in ("0", "no", "off") else word


def gpus(value: object) -> object:
    word = lower(value)
    if word == "all" or (isinstance(word, str) and word.isascii() and word.isdigit() and 1 <= int(word) <= MAX_GPUS):
        return word if word == "all" else int(word)
    if isinstance(value, int) and 1 <= value <= MAX_GPUS:
        return value
    raise ValueError(f"write all, or a number from 1 to {MAX_GPUS}")


def preload(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = [part.strip().lower() for part in value.split(",") if part.strip()]
    if parts == ["none"]:
        return ()
    if "none" in parts or any(part not in PRELOADABLE for part in parts):
        raise ValueError("write any of i2v,t2v,5b with commas between, or none")
    return tuple(dict.fromkeys(parts))


def openings(value: object) -> object:
    if not isinstance(value, str):
        return value
    entries = [part.strip() for part in value.split(",") if part.strip()]
    if unreadable := [entry for entry in entries if not _opens(entry)]:
        raise ValueError(f"write hosts, host:port or CIDRs, not {', '.join(map(repr, unreadable))}")
    return entries


def _opens(entry: str) -> bool:
    try:
        allowlist.parse(entry)
    except ValueError:
        return False
    return True


def is_secret(text: str) -> bool:
    """Whether `text` is as Standard Webhooks writes a secret."""
    encoded = text.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded, validate=True)
    except ValueError:
        return False
    return len(key) in _SECRET_BYTES and text == f"whsec_{base64.b64encode(key).decode()}"


def bucket_in_endpoint(endpoint: str | None) -> str | None:
    """The bucket of an endpoint written as `https://BUCKET.REGION.digitaloceanspaces.com`, or None."""
    found = re.match(r"https?://([^./]+)\.[^./]+\.digitaloceanspaces\.com", endpoint or "")
    return found[1] if found else None


def storage_problems(given: Collection[str]) -> list[str]:
    """What is wrong where only some of the four fields of the storage are `given`."""
    missing = [variable for name, variable in REMOTE_STORAGE.items() if name not in given]
    if not missing or len(missing) == len(REMOTE_STORAGE):
        return []
    return [
        f"storage is configured in part: set {', '.join(missing)} too, "
        "or unset all four DIGITAL_OCEAN_* variables to write to OUTPUT_DIR"
    ]
