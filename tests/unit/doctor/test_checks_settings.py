"""The doctor on settings, signing and ffmpeg: a row for each finding and its advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from tests.kits.doctor_kit import PLATFORM, SECRET, Patch, Row, deployment
from worker.delivery.webhooks import envelopes
from worker.doctor import ffmpeg, settings
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding


def other_key(_: Path, patch: Patch) -> None:
    other = Webhook(f"whsec_{'B' * 32}")
    patch.setattr(envelopes, "Webhook", lambda _: other)


def program(script: str) -> Callable[[Path, Patch], None]:
    def before(home: Path, _: Patch) -> None:
        (home / "ffmpeg").write_text(f"#!/bin/sh\n{script}\n")
        (home / "ffmpeg").chmod(0o755)

    return before


def with_own_ffmpeg(there: Deployment) -> Finding:
    return ffmpeg.check(replace(there, ffmpeg=there.temporary / "ffmpeg"))


NO_FFMPEG = {"advice": "install imageio-ffmpeg again", "stops": True}

# fmt: off
ROWS: dict[str, Row] = {
    # settings
    "settings": Row(settings.check, "OK", "serves demo, loads first: i2v"),
    "settings demo for customers": Row(settings.check, "WARN", "the demo model answers customers",
        "unset MODEL_PROFILE", env={"MODEL_PROFILE": "demo", **PLATFORM}),
    "settings sdk log": Row(settings.check, "WARN", "logs prompts and signed URLs", "unset RUNPOD_LOG_LEVEL",
        env={"RUNPOD_DEBUG_LEVEL": "debug"}),
    "settings unreadable": Row(settings.check, "FAIL", "WEBHOOK_SECRET", "each secret must be whsec_ and base64",
        stops=True, env={"WEBHOOK_SECRET": "not base64!"}),
    "signing": Row(settings.check_signing, "OK", "with 1 secret", env={"WEBHOOK_SECRET": SECRET}),
    "signing with two": Row(settings.check_signing, "OK", "with 2 secrets", env={"WEBHOOK_SECRET":
        f"{SECRET} whsec_{'A' * 32}"}),
    "signing off": Row(settings.check_signing, "WARN", "WEBHOOK_SECRET is not set", "python -c"),
    "signing with another key": Row(settings.check_signing, "FAIL",
        "the signature does not verify with secret 1 of 1", "replace it by one made by: python -c",
        env={"WEBHOOK_SECRET": SECRET}, before=other_key),
    "signing unreadable": Row(settings.check_signing, "WARN", "cannot be read", "the line settings",
        env={"WEBHOOK_SECRET": "not base64!"}),
    # ffmpeg
    "ffmpeg": Row(ffmpeg.check, "OK", "libx264: 5 frames became "),
    "ffmpeg without libx264": Row(with_own_ffmpeg, "FAIL", "the video encoder ended early, with exit code 8",
        before=program("echo 'Unknown encoder libx264' >&2; exit 8"), **NO_FFMPEG),
    "ffmpeg killed": Row(with_own_ffmpeg, "FAIL", "the video encoder ended early, with signal 9",
        before=program("kill -9 $$"), **NO_FFMPEG),
    "ffmpeg missing": Row(with_own_ffmpeg, "FAIL", "the video encoder could not be started", **NO_FFMPEG),
    "ffmpeg without a folder": Row(ffmpeg.check, "FAIL", "no video can be written", "set TMPDIR", stops=True,
        given={"temporary": Path("/nowhere")}),
}
# fmt: on


@pytest.mark.parametrize("name", ROWS)
def test_a_check_finds_and_advises(name: str, tmp_path: Path, monkeypatch: Patch) -> None:
    ROWS[name].holds(tmp_path, monkeypatch)


def test_readable_settings_count_beside_unreadable_ones(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("MAX_FRAMES", "many")
    monkeypatch.setenv("MAX_PIXELS", "100000")
    there = deployment(tmp_path)
    assert (there.settings.max_pixels, there.settings.max_frames, len(there.problems)) == (100_000, 161, 1)
