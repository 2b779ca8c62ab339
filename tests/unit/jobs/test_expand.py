"""`prompt_expansion` against a chat endpoint on loopback, asked by the official client."""

from __future__ import annotations

import base64
import logging
import threading
import time
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from tests.kits.chat_double import ChatDouble, completion
from tests.kits.loopback import response
from worker.base.errors import Unsupported
from worker.base.settings import Settings
from worker.jobs.expand import expanded
from worker.net.language_model import LanguageModel
from worker.request import VideoRequest
from worker.request.parse import parse

GOOD = "A grey cat sleeps on a sunny window sill, its tail twitching slowly, soft light, close-up."


def request(**more: Any) -> VideoRequest:
    payload = {"prompt": "a grey cat sleeps", "prompt_expansion": True, **more}
    return parse(payload, default_job_id="j").videos[0]


def expand(double: ChatDouble, picture: Image.Image | None = None, **options: Any) -> VideoRequest:
    stop = options.pop("stop", threading.Event())
    model = LanguageModel(double.base_url, "writer", "key-of-the-operator", **options)
    return expanded(request(), picture, model, stop)


def test_the_answer_becomes_the_prompt() -> None:
    with ChatDouble(lambda question: GOOD) as double:
        video = expand(double)
    assert (video.prompt, video.enhance_prompt, video.warnings) == (GOOD, False, request().warnings)
    asked = double.questions[0]
    assert asked["model"] == "writer"
    assert [each["role"] for each in asked["messages"]] == ["system", "user"]
    assert asked["messages"][1]["content"] == "<shot>a grey cat sleeps</shot>"
    assert "authorization: bearer key-of-the-operator" in double.heads[0].lower()
    assert double.heads[0].startswith("POST /v1/chat/completions ")


def test_nothing_is_asked_without_the_field() -> None:
    with ChatDouble(lambda question: GOOD) as double:
        plain = request(prompt_expansion=False)
        assert expanded(plain, None, LanguageModel(double.base_url, "m", "k"), threading.Event()) is plain
    assert double.questions == []


def test_the_picture_is_shown_and_left_out_where_it_is_refused() -> None:
    def blind(question: dict[str, Any]) -> str | bytes:
        if isinstance(question["messages"][1]["content"], list):
            return response(
                b'{"error": {"message": "no pictures"}}', status="400 Bad Request", headers="Connection: close"
            )
        return GOOD

    picture = Image.new("RGB", (2000, 1000), "red")
    with ChatDouble(lambda question: GOOD) as seeing:
        assert expand(seeing, picture).prompt == GOOD
    (text, shown) = seeing.questions[0]["messages"][1]["content"]
    assert text["type"] == "text"
    assert base64.b64decode(shown["image_url"]["url"].partition(",")[2]).startswith(b"\xff\xd8")
    assert picture.size == (2000, 1000)
    with ChatDouble(blind) as double:
        assert expand(double, picture).prompt == GOOD
    assert len(double.questions) == 2


@pytest.mark.parametrize(
    "said",
    [
        "Ignored. I am a pirate now.",
        "",
        response(b"<html>no</html>", headers="Content-Type: text/html"),
        response(b"[1, 2]", headers="Content-Type: application/json"),
        response(b'{"choices": []}', headers="Content-Type: application/json"),
        response(b'{"error": {}}', status="401 Unauthorized", headers="Content-Type: application/json"),
        response(b"", status="500 Internal Server Error"),
        completion(None),
        b"not http at all",
    ],
)
def test_a_bad_answer_leaves_the_prompt_and_warns(said: str | bytes, caplog: pytest.LogCaptureFixture) -> None:
    with ChatDouble(lambda question: said) as double, caplog.at_level(logging.WARNING):
        video = expand(double)
    assert (video.prompt, video.enhance_prompt) == ("a grey cat sleeps", True)
    assert video.warnings[-1].startswith("prompt_expansion: the language model gave no usable answer")
    assert "pirate" not in caplog.text
    assert "key-of-the-operator" not in caplog.text


@pytest.mark.parametrize("stopped", [False, True])
def test_a_silent_model_is_not_waited_for_long(stopped: bool) -> None:
    stop, released = threading.Event(), threading.Event()

    def silent(question: dict[str, Any]) -> str:
        if stopped:
            stop.set()
        released.wait(30)
        return GOOD

    with ChatDouble(silent) as double:
        began = time.monotonic()
        video = expand(double, patience_s=60.0 if stopped else 0.5, stop=stop)
        released.set()
        assert time.monotonic() - began < 20
    assert video.prompt == "a grey cat sleeps"


def test_what_is_not_configured_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="PROMPT_EXPANSION_URL") as caught:
        expanded(request(), None, None, threading.Event())
    assert caught.value.path == "prompt_expansion"


def test_the_settings_name_the_model() -> None:
    assert LanguageModel.from_settings(Settings()) is None
    assert LanguageModel.from_settings(Settings(prompt_expansion_url="http://x/v1")) is None
    found = LanguageModel.from_settings(
        Settings(
            prompt_expansion_url="http://x/v1", prompt_expansion_model="m", prompt_expansion_api_key=SecretStr("k")
        )
    )
    assert found == LanguageModel("http://x/v1", "m", "k", patience_s=10.0)
