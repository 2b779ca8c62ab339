"""The techniques of the VAE through the engine: what they report, whether they are exact, and that nothing stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.kits.engine_kit import (
    BOTH_ENDS,
    PICTURE,
    PLANNER,
    VIDEO,
    FixedPlanner,
    demo_source,
    image_request,
    pixels,
    plan,
    render,
    request,
)
from tests.kits.slow import slow
from worker.base.settings import Settings
from worker.engine import Conditioning, Engine
from worker.engine.techniques import decode_dtype
from worker.engine.techniques.base import Setup
from worker.engine.techniques.decode_dtype import DecodeDtype
from worker.request import VideoRequest
from worker.weights.sources import demo

BOTH = {"last_image_url": "https://example.com/b.png"}
CASES: dict[str, tuple[VideoRequest, Conditioning]] = {
    "image": (image_request(num_frames=33), PICTURE),
    "both ends": (image_request(num_frames=33, **BOTH), BOTH_ENDS),
}
OTHERS: dict[str, tuple[VideoRequest, Conditioning]] = {
    "text": (request(), Conditioning()),
    "video": (request(reference_video_url="https://example.com/a.mp4"), VIDEO),
}


def made(memory_plan: Any = None, **settings: Any) -> Engine:
    kept = Settings(**settings)
    planner = FixedPlanner(None, kept, None, memory_plan or plan("resident"), None)
    return Engine(demo_source(), demo.catalogue(), planner)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(demo_source(), demo.catalogue(), PLANNER)


@pytest.fixture(scope="module")
def without() -> Engine:
    return made(enable_image_encode_reuse=False)


class Convolutions:
    """Counts how often the encoder's first convolution ran."""

    def __init__(self, engine: Engine, key: str = "i2v") -> None:
        self.count = 0
        self._encoder = engine.models[key].components.shared.vae.encoder

    def __enter__(self) -> Convolutions:
        self._hook = self._encoder.conv_in.register_forward_pre_hook(self._ran)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _ran(self, *_: object) -> None:
        self.count += 1


@pytest.mark.parametrize("case", ["image", *slow(*(case for case in CASES if case != "image"))])
def test_the_video_is_the_same_with_less_encoding(engine: Engine, without: Engine, case: str) -> None:
    whole = render(without, *CASES[case])
    rendering = render(engine, *CASES[case])
    with Convolutions(engine) as reusing, Convolutions(without) as all_of_it:
        assert (pixels(render(engine, *CASES[case])) == pixels(render(without, *CASES[case]))).all()
    assert (reusing.count, all_of_it.count) == ({"image": 4, "both ends": 5}[case], 9)
    assert rendering.parameters["image_encode_reuse"] == "on"
    assert 0 < rendering.parameters["image_encode_share"] < 1
    assert whole.parameters["image_encode_reuse"] == "off"
    assert "image_encode_share" not in whole.parameters


def test_a_single_picture_has_nothing_to_leave_out_and_that_is_said_once(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    video = image_request(model="5b")
    for _ in range(2):
        assert render(engine, video).parameters["image_encode_reuse"] == "off"
    assert caplog.text.count("image_encode_reuse is off: this model encodes the picture alone") == 1


def test_tiles_are_encoded_as_diffusers_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tiled = made(plan("resident", vae_tiling=True))
    assert render(tiled, *CASES["image"]).parameters["image_encode_reuse"] == "off"
    assert "image_encode_reuse is off: the memory plan encodes in tiles" in caplog.text


@pytest.mark.parametrize("failure", [None, RuntimeError("broken")], ids=["made", "failed"])
def test_nothing_stays_on_the_vae(engine: Engine, failure: Exception | None) -> None:
    render(engine, *CASES["image"])
    components = engine.models["i2v"].components
    if failure is not None:

        def fail(*_: object) -> None:
            raise failure

        hook = components.transformer.register_forward_pre_hook(fail)
        try:
            with pytest.raises(RuntimeError, match="broken"):
                render(engine, *CASES["image"])
        finally:
            hook.remove()
    assert "_encode" not in components.shared.vae.__dict__


def test_decoding_in_bf16_is_near_and_told(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    half = made(vae_decode_dtype="bf16")
    for video, conditioning in (CASES["image"], OTHERS["text"]):
        exact, near = render(engine, video, conditioning), render(half, video, conditioning)
        assert (exact.parameters["vae_decode_dtype"], near.parameters["vae_decode_dtype"]) == ("fp32", "bf16")
        error = np.square(pixels(near).astype(float) - pixels(exact)).mean()
        assert 0 < error < 255**2 / 10**3.5  # 35 dB
    assert caplog.text.count("the VAE decodes in bf16") == 1
    assert {each.dtype for each in half.models["i2v"].components.shared.vae.parameters()} == {torch.float32}


def test_out_of_memory_while_decoding_in_bf16_goes_on_in_tiles_of_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.engine import decode

    half = made(vae_decode_dtype="bf16")
    rendering = render(half, *OTHERS["text"])
    expected = pixels(rendering)
    asked: list[tuple[bool, bool]] = []
    frames = decode.frames

    def failing(vae: Any, latents: Any, *, tiled: bool, half: bool, fused: bool) -> Any:
        asked.append((tiled, half))
        for number, frame in enumerate(frames(vae, latents, tiled=tiled, half=half, fused=fused)):
            if number == 1 and not tiled:
                raise torch.OutOfMemoryError("no room")
            yield frame

    monkeypatch.setattr(decode, "frames", failing)
    assert (pixels(rendering) == expected).all()
    assert asked == [(False, True), (True, True)]


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "fp32"), ((8, 0), "bf16")])
def test_a_gpu_without_bf16_decodes_in_fp32_and_says_so(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decode_dtype.torch.cuda, "get_device_capability", lambda _device: capability)
    technique = DecodeDtype(Setup(Settings(vae_decode_dtype="bf16"), torch.device("cuda"), torch.float32))
    technique.prepare(None, plan("resident"))  # type: ignore[arg-type] # which expert it is does not matter
    run = _run()
    with technique.applied(run):
        pass
    assert (run.parameters["vae_decode_dtype"], run.half_decode) == (dtype, dtype == "bf16")
    assert ("the VAE decodes in fp32: bf16 needs compute capability 8.0" in caplog.text) == (dtype == "fp32")


def _run() -> Any:
    from worker.engine.techniques import Run

    return Run(request(), demo.catalogue()[0], plan("resident"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["BF16", "fp32"])
def test_the_setting_is_read_in_any_case(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAE_DECODE_DTYPE", word)
    assert Settings().vae_decode_dtype == word.lower()
    monkeypatch.setenv("VAE_DECODE_DTYPE", "fp16")
    with pytest.raises(ValidationError):
        Settings()
