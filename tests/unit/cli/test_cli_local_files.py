"""Files of this machine as inputs: images inside the payload, videos over loopback."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from worker.cli import flags, local_files
from worker.cli.failures import CommandFailed


def test_an_image_of_this_machine_becomes_a_data_uri(tmp_path: Path) -> None:
    for name, kind in (("a.png", "png"), ("b.JPG", "jpeg"), ("c.webp", "webp"), ("d", "png"), ("e.txt", "png")):
        (tmp_path / name).write_bytes(b"pixels")
        payload = local_files.filled({"reference_image_url": str(tmp_path / name)}, serve=None)
        head, _, tail = payload["reference_image_url"].partition(",")
        assert head == f"data:image/{kind};base64"
        assert base64.b64decode(tail) == b"pixels"


def test_urls_stay_as_they_are() -> None:
    fields = {
        "reference_image_url": "HTTPS://example.com/a.png",
        "last_image_url": "data:image/png;base64,AAAA",
        "reference_video_url": "http://example.com/a.mp4",
    }
    assert local_files.filled(fields, serve=None) == fields


@pytest.mark.parametrize("field", ["reference_image_url", "last_image_url", "reference_video_url"])
def test_a_file_that_is_not_there_is_a_wrong_flag(field: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        local_files.filled({field: "missing.png"}, serve=lambda path: str(path))
    assert caught.value.status == 2
    assert str(caught.value) == f"error: {flags.FLAGS[field][0]}: there is no file missing.png"


def test_a_video_of_this_machine_is_served_on_loopback_while_the_run_lasts(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"frames" * 1000)
    with local_files.FileServer() as server:
        assert server.address is None
        payload = local_files.filled({"reference_video_url": str(tmp_path / "a.mp4")}, serve=server.serve)
        url = payload["reference_video_url"]
        assert url.startswith(f"http://{server.address}/")
        assert str(server.address).startswith("127.0.0.1:")
        with urllib.request.urlopen(url) as answer:
            assert answer.read() == b"frames" * 1000
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://{server.address}/a.mp4")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url)
