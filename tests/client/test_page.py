"""The page in a real browser, in front of the real handler.py on the demo model."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.kits.browser import chromium
from tests.kits.loopback import wait_until

ROOT = Path(__file__).resolve().parents[2]
PLAY = ROOT / ".venv-play" / "bin" / "python"
WORDS = "A red ball moves left over rippling water"
QUICK = '{"num_frames": 13, "fps": 8, "preview": "animated"}'
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not PLAY.exists(), reason="there is no .venv-play: `make play` makes it"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as `make play` starts it."""
    home = tmp_path_factory.mktemp("page")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}",
        "MODEL_PROFILE": "demo",
        "HOME": str(home),
    }
    command = [
        str(PLAY),
        "-m",
        "videogen_client.page",
        "--home",
        str(home),
        "--start",
        f"{sys.executable} {ROOT}/handler.py",
    ]
    command += ["--plan", f"{sys.executable} -m worker.cli"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def said() -> list[str]:
        assert process.poll() is None, (home / "log").read_text()
        return [line for line in (home / "log").read_text().splitlines() if line.startswith("open http://127.0.0.1:")]

    try:
        wait_until(lambda: bool(said()), 400)
        yield said()[0].removeprefix("open ")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    assert process.returncode == 143


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Any]:
    """A tab of its own; all that it asks for comes from the page's own server."""
    tab = browser.new_page(viewport={"width": 1280, "height": 1100})
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.set_default_timeout(300_000)
    tab.goto(address)
    tab.wait_for_selector("#prompt textarea")
    yield tab
    tab.close()
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def choose(page: Any, **fields: str) -> None:
    """Fill in fields by their names; those under "More" are opened first."""
    page.click("#more-fields button")
    for name, text in fields.items():
        page.fill(f"#{name} textarea, #{name} input", text)


def shoot(page: Any, name: str) -> None:
    """A picture of the page where SHOTS names a folder, to be looked at."""
    if folder := os.environ.get("SHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def clip_of(page: Any) -> str:
    """Waits for the clip; returns its address."""
    page.wait_for_selector("#stage video")
    assert page.inner_text("#state").startswith("done in")
    page.wait_for_function("document.querySelector('#stage video').videoWidth > 0")
    found: str = page.get_attribute("#stage video", "src")
    return found


def test_a_clip_is_made_from_words_after_its_plan_was_shown(page: Any, address: str) -> None:
    choose(page, prompt=WORDS, more=QUICK, steps="6", seed="7")
    page.click("#ask-plan")
    page.wait_for_selector("pre.plan")
    assert "on L40S" in page.inner_text("pre.plan")
    assert "cost" in page.inner_text("pre.plan")
    page.click("#make")
    page.wait_for_selector("#stage img.preview")
    assert "step" in page.inner_text("#state")
    shoot(page, "page-running")
    source = clip_of(page)
    assert page.inner_text("#state").endswith("seed 7")
    assert page.request.get(address + source).body()[4:8] == b"ftyp"
    assert page.locator("#gallery video").count() >= 1
    page.click("text=The same request, to copy")
    page.wait_for_selector("#as-curl")
    assert '"seed": 7' in page.inner_text("#as-json")
    assert "/runsync" in page.inner_text("#as-curl")
    shoot(page, "page")


def test_a_clip_is_made_from_a_picture_that_is_dropped(page: Any) -> None:
    from PIL import Image

    drawn = Path(os.environ["OUTPUT_DIR"]).parent / "ball.png"
    Image.linear_gradient("L").convert("RGB").save(drawn)
    choose(page, prompt="A yellow ball moves right", more=QUICK, steps="4")
    dropped = page.evaluate_handle(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
            const held = new DataTransfer();
            held.items.add(new File([bytes], "ball.png", {type: "image/png"}));
            return held;
        }""",
        base64.b64encode(drawn.read_bytes()).decode(),
    )
    page.dispatch_event("#picture button", "drop", {"dataTransfer": dropped})
    page.wait_for_selector("#picture img")
    page.click("#make")
    clip_of(page)
    page.click("text=The same request, to copy")
    assert '"reference_image_url": "data:image/' in page.inner_text("#as-json")
    shoot(page, "page-picture")


def test_an_error_is_shown_at_its_field(page: Any) -> None:
    choose(page, prompt=WORDS, seconds="-1", steps="0", loras="a b c d")
    page.click("#make")
    page.wait_for_selector("#error-loras:visible")
    assert "one LoRA a line" in page.inner_text("#error-loras")
    page.fill("#loras textarea", "")
    page.click("#more-fields button")  # closed: the error opens it again
    page.click("#make")
    page.wait_for_selector("#error-steps:visible")
    assert "1 to 100" in page.inner_text("#error-steps")
    assert "more than 0" in page.inner_text("#error-seconds")
    assert not page.is_visible("#error-loras")
    assert "see the field" in page.inner_text("#state")
    shoot(page, "page-error")


def test_a_video_is_stopped_and_the_next_one_is_made(page: Any) -> None:
    choose(page, prompt=WORDS, more=QUICK, steps="100")
    page.click("#make")
    page.wait_for_function("document.querySelector('#state').innerText.includes('step')")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#state').innerText.startsWith('stopped')")
    assert page.locator("#stage video").count() == 0
    page.wait_for_selector("#stop button[disabled], button#stop[disabled]")
    page.fill("#steps input, #steps textarea", "1")
    page.click("#make")
    clip_of(page)
