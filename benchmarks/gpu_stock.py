"""The same work by Diffusers' own pipeline, in the same process on weights of the same kind: what the rows are held to.

`WanPipeline` as its documentation runs it: bf16 experts and text encoder, VAE in fp32, default attention, both prompts
encoded for every video, frames as arrays (`output_type="np"`). It neither compresses nor stores its frames.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from diffusers.video_processor import VideoProcessor

from benchmarks.gpu_rig import Rig
from benchmarks.gpu_rows import Measured, Row, request
from benchmarks.gpu_videos import vae_input, whole_of
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine.modes import schedules
from worker.engine.techniques import attention
from worker.request import VideoRequest
from worker.request.catalogue import T2V_A14B

# Of the request, as the pipeline calls them too.
_SAME_NAMES = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "guidance_scale_2",
)


class Stock:
    """A loaded pipeline. Where the whole model does not fit on the GPU, with Diffusers' own model offload."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self._spec = rig.scale.spec
        self._engine = rig.engine(Settings(enable_sage_attention=False), self._spec)
        plan = self._engine.video(request(Row("stock", "guided"), rig.scale, take=0)).plan
        loaded = self._engine.models.use(self._spec, plan, Stop())
        for expert in loaded.experts:
            loaded.components.wait_for(expert)
            expert.set_attention_backend(attention.NATIVE)
        self._experts = loaded.experts
        loaded.components.wait_for(loaded.components.shared.vae)
        loaded.residency.leave()
        for module in loaded.components.shared.vae.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
                module.weight.data = module.weight.data.contiguous()  # not the worker's layout
        self._config = loaded.components.scheduler_config
        self.pipeline = WanPipeline(**loaded.components.for_pipeline(None))
        self.is_offloaded = rig.device.type == "cuda" and (plan.residency, plan.text_encoder) != (
            "resident",
            "resident",
        )
        if self.is_offloaded:
            self.pipeline.enable_model_cpu_offload(device=rig.device)
        else:
            self.pipeline.to(rig.device)
        self.pipeline.set_progress_bar_config(disable=True)

    def close(self) -> None:
        self.pipeline.remove_all_hooks()
        del self.pipeline, self._experts
        self.rig.release(self._engine, self._spec)

    def measure(self, row: Row, *, steps: int, repeats: int) -> Measured:
        """What a row does, the stock way; guided videos from `steps` steps of each expert."""
        if row.kind in ("decode", "encode"):
            return self._stage(row, repeats)
        if row.kind == "turbo":
            takes = [self.video(row, request(row, self.rig.scale, take=take)) for take in range(repeats + 1)]
            return sorted(takes[1:], key=lambda each: each.timings["total"])[repeats // 2]
        self.video(row, request(row, self.rig.scale, take=0, steps=2, even=True))
        part = request(row, self.rig.scale, take=1, steps=2 * steps, even=True)
        found = whole_of(self.video(row, part), row, part, request(row, self.rig.scale, take=1))
        found.extrapolated = steps
        return found

    def video(self, row: Row, video: VideoRequest) -> Measured:
        moments: list[float] = []

        def before_first(_expert: object, _arguments: object) -> None:
            if not moments:
                moments.append(self._now())

        def after_step(_pipeline: Any, _step: int, _timestep: object, tensors: dict[str, Any]) -> dict[str, Any]:
            moments.append(self._now())
            return tensors

        self.pipeline.scheduler = self._scheduler(row, video)
        self.rig.reset_peak()
        hooks = [each.register_forward_pre_hook(before_first) for each in self._experts]
        began = self._now()
        self.pipeline(
            **{name: getattr(video, name) for name in _SAME_NAMES},
            generator=torch.Generator().manual_seed(video.seed),
            output_type="np",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=[],
        )
        total = self._now() - began
        for hook in hooks:
            hook.remove()
        steps_s = [after - before for before, after in pairwise(moments)]
        timings = {"generate": sum(steps_s), "total": total}
        return Measured(
            row.name,
            video_s=total,
            generate_s=timings["generate"],
            step_s=statistics.median(steps_s),
            peak_bytes=self.rig.peak_bytes(),
            timings=timings,
            steps_s=steps_s,
        )

    def _scheduler(self, row: Row, video: VideoRequest) -> Any:
        if row.kind == "turbo":
            return schedules.scheduler()
        shift = T2V_A14B.flow_shift if video.flow_shift is None else video.flow_shift
        return UniPCMultistepScheduler.from_config(self._config, flow_shift=shift)

    @torch.no_grad()
    def _stage(self, row: Row, repeats: int) -> Measured:
        vae = self.pipeline.vae
        inputs = vae_input(row, self.rig)

        def decode() -> None:
            VideoProcessor().postprocess_video(vae.decode(inputs, return_dict=False)[0], output_type="np")

        work: Callable[[], object] = decode if row.kind == "decode" else lambda: vae.encode(inputs)
        seconds = []
        for _ in range(repeats + 1):
            self.rig.reset_peak()
            began = self._now()
            work()
            seconds.append(self._now() - began)
        peak = self.rig.peak_bytes()
        return Measured(row.name, statistics.median(seconds[1:]), warm_up_s=seconds[0], peak_bytes=peak)

    def _now(self) -> float:
        self.rig.synchronize()
        return time.perf_counter()
