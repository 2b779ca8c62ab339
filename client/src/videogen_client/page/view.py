"""The page itself, in gradio: a form on the left, what becomes of it on the right. All it loads is from here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from ..errors import VideoGenError
from .fields import FIELDS, SIZES, FieldsWrong, Form, as_curl, as_json, choices, payload_of
from .studio import Clip, Look, Studio

CSS = """
.field-error { color: #b3261e; font-weight: 600; margin: -6px 4px 2px; }
.stage { min-height: 300px; display: flex; align-items: center; justify-content: center; border-radius: 12px;
  background: #f1f3f5; color: #667; overflow: hidden; }
.stage video, .stage img { max-width: 100%; max-height: 420px; display: block; border-radius: 12px; }
.state { font-variant-numeric: tabular-nums; padding: 2px 4px; }
.state.wrong { color: #b3261e; font-weight: 600; }
.bar { height: 6px; border-radius: 3px; background: #dde1e6; overflow: hidden; margin-top: 6px; }
.bar i { display: block; height: 100%; background: #4f46e5; transition: width .4s; }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 10px; }
.clips video, .clips img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 8px; display: block; }
.clips figcaption { font-size: 12px; line-height: 1.3; color: #667; margin-top: 3px; }
pre.plan { white-space: pre-wrap; font-size: 12px; line-height: 1.45; margin: 0; padding: 8px 10px; background: #f1f3f5;
  border-radius: 8px; color: #223; }
@media (prefers-color-scheme: dark) { .stage, pre.plan { background: #1d2126; color: #ccd; } }
"""
FONT = ("system-ui", "sans-serif")
THEME = gr.themes.Soft(font=FONT, font_mono=("ui-monospace", "monospace"))
_INSIDE = {"loras", "steps", "seed", "more"}  # the fields that a click opens
_HINT = "a red ball moves left over rippling water"


@dataclass(frozen=True)
class Target:
    """What the page stands in front of: its name, the address for curl, and whether that is a local worker."""

    name: str
    url: str
    is_local: bool


def make_page(studio: Studio, target: Target) -> gr.Blocks:
    with gr.Blocks(title="VideoGen", analytics_enabled=False) as page:
        gr.HTML(f"<h2 style='margin:4px'>Make a video</h2><div class='state'>by {escape(target.name)}</div>")
        with gr.Row():
            with gr.Column(scale=5):
                fields, errors, more = _form()
                with gr.Row():
                    make = gr.Button("Make the video", variant="primary", elem_id="make")
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", interactive=False)
                _plan_row(studio, fields, errors)
            with gr.Column(scale=6):
                state = gr.HTML(_state(Look("ready")), elem_id="state")
                stage = gr.HTML(_stage(None, None), elem_id="stage")
                with gr.Accordion("The same request, to copy", open=False):
                    shown = gr.Code(language="json", label="JSON", elem_id="as-json", interactive=False)
                    curl = gr.Code(language="shell", label="curl", elem_id="as-curl", interactive=False)
                gallery = gr.HTML(_gallery(studio.clips), elem_id="gallery", label="The last clips")
        outputs = [state, stage, gallery, shown, curl, make, stop, more, *errors]

        async def run(*values: Any, request: gr.Request) -> AsyncIterator[list[Any]]:
            form = _form_of(values)
            texts = _texts(form, target)
            async for look in studio.make(form, str(request.session_hash)):
                yield _updates(studio, look, texts)

        async def halt(request: gr.Request) -> Any:
            try:
                await studio.stop(str(request.session_hash))
            except VideoGenError as failure:
                return _state(Look(f"not stopped: {failure}", is_wrong=True))
            return gr.skip()

        make.click(_with_request(run), fields, outputs, show_progress="hidden", concurrency_limit=8)
        stop.click(halt, None, [state], show_progress="hidden", concurrency_limit=8)
        page.load(lambda: _gallery(studio.clips), None, [gallery], show_progress="hidden")
    return page


def _with_request(run: Any) -> Any:
    """gradio finds the request by its annotation among the plain parameters."""

    async def called(request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        async for update in run(*values, request=request):
            yield update

    return called


def _form() -> tuple[list[Any], list[Any], Any]:
    """The fields in the order of `FIELDS`, where the error of each is shown, and the part that holds the last ones."""
    errors: list[Any] = []

    def with_error(field: Any) -> Any:
        errors.append(gr.HTML(visible=False, elem_id=f"error-{FIELDS[len(errors)]}"))
        return field

    def names(label: str, values: list[str], elem_id: str, **more: Any) -> Any:
        shown = [("the default", ""), *((value, value) for value in values)]
        return gr.Dropdown(shown, value="", label=label, elem_id=elem_id, **more)

    fields = [
        with_error(gr.Textbox(label="Prompt", lines=3, placeholder=_HINT, elem_id="prompt")),
        with_error(
            gr.Image(
                type="filepath", label="First picture (optional)", height=190, elem_id="picture", sources=["upload"]
            )
        ),
    ]
    with gr.Row():
        with gr.Column(min_width=150):
            fields.append(with_error(names("Size", list(SIZES), "size", allow_custom_value=True)))
        with gr.Column(min_width=150):
            fields.append(with_error(gr.Textbox(label="Seconds", placeholder="the default", elem_id="seconds")))
    with gr.Row():
        with gr.Column(min_width=150):
            fields.append(with_error(names("Preset", choices("quality_preset"), "preset")))
        with gr.Column(min_width=150):
            fields.append(with_error(names("Camera", choices("camera_motion"), "camera")))
    with gr.Accordion("More", open=False, elem_id="more-fields") as more:
        fields.append(
            with_error(
                gr.Textbox(
                    label="LoRAs, one a line", lines=2, placeholder="style.safetensors 0.8 high", elem_id="loras"
                )
            )
        )
        with gr.Row():
            with gr.Column(min_width=150):
                fields.append(with_error(gr.Textbox(label="Steps", placeholder="the default", elem_id="steps")))
            with gr.Column(min_width=150):
                fields.append(with_error(gr.Textbox(label="Seed", placeholder="at random", elem_id="seed")))
        fields.append(
            with_error(gr.Textbox('{"preview": "animated"}', label="Any other field, as JSON", lines=2, elem_id="more"))
        )
    return fields, errors, more


def _plan_row(studio: Studio, fields: list[Any], errors: list[Any]) -> None:
    if not studio.has_plans:
        return
    with gr.Row(equal_height=True):
        gpu = gr.Textbox("L40S", label="GPU", elem_id="gpu", min_width=90)
        price = gr.Number(0.86, label="$ an hour", elem_id="price", min_width=90)
        ask = gr.Button("Plan and cost", elem_id="ask-plan", min_width=120)
    shown = gr.HTML(elem_id="plan")

    async def plan(name: str, usd: float | None, *values: Any) -> list[Any]:
        look = await studio.plan(_form_of(values), name.strip(), usd)
        return [f"<pre class='plan'>{escape(look.status)}</pre>", *_error_updates(look)]

    ask.click(plan, [gpu, price, *fields], [shown, *errors], show_progress="hidden")


def _form_of(values: tuple[Any, ...]) -> Form:
    return Form(**{name: value or "" for name, value in zip(FIELDS, values, strict=True)})


def _texts(form: Form, target: Target) -> tuple[str, str]:
    try:
        payload = payload_of(form)
    except FieldsWrong:
        return "", ""
    return as_json(payload), as_curl(payload, target.url, is_local=target.is_local)


def _updates(studio: Studio, look: Look, texts: tuple[str, str]) -> list[Any]:
    buttons = [gr.Button(interactive=not look.is_running), gr.Button(interactive=look.is_running)]
    return [
        _state(look),
        _stage(look.clip, look.preview) if look.clip or look.preview or not look.is_running else gr.skip(),
        _gallery(studio.clips),
        *texts,
        *buttons,
        gr.Accordion(open=True) if look.errors.keys() & _INSIDE else gr.skip(),
        *_error_updates(look),
    ]


def _error_updates(look: Look) -> list[Any]:
    return [
        gr.HTML(f"<div class='field-error' role='alert'>{escape(message)}</div>", visible=True)
        if (message := look.errors.get(name))
        else gr.HTML("", visible=False)
        for name in FIELDS
    ]


def _state(look: Look) -> str:
    bar = "" if look.percent is None else f"<div class='bar'><i style='width:{look.percent}%'></i></div>"
    percent = "" if look.percent is None or not look.is_running else f"{look.percent}% &middot; "
    return (
        f"<div class='state{' wrong' if look.is_wrong else ''}' role='status'>{percent}{escape(look.status)}{bar}</div>"
    )


def _stage(clip: Clip | None, preview: str | None) -> str:
    if clip is not None:
        return f"<div class='stage'>{_moving(clip, is_large=True)}</div>"
    if preview is not None:
        return f"<div class='stage'><img class='preview' alt='preview' src='/clips/{escape(preview)}'></div>"
    return "<div class='stage'>the video will be here</div>"


def _gallery(clips: list[Clip]) -> str:
    figures = [
        f"<figure style='margin:0'>{_moving(clip)}<figcaption>{escape(clip.prompt[:80])}</figcaption></figure>"
        for clip in clips
    ]
    return f"<div class='clips'>{''.join(figures)}</div>" if figures else ""


def _moving(clip: Clip, *, is_large: bool = False) -> str:
    source = f"/clips/{escape(clip.name)}"
    if not clip.name.endswith((".mp4", ".webm")):
        return f"<img alt='{escape(clip.prompt[:80])}' src='{source}'>"
    poster = "" if clip.poster is None else f" poster='/clips/{escape(clip.poster)}'"
    how = "autoplay controls" if is_large else "onmouseover='this.play()' onclick='this.play()' preload='metadata'"
    return f"<video {how} loop muted playsinline src='{source}'{poster}></video>"
