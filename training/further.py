"""The parts of the further training on a GPU, each of which is a process: `training.train_further` conducts them."""

from __future__ import annotations

import json
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import latents

if TYPE_CHECKING:
    import torch
    from diffusers import WanTransformer3DModel

    from training.experts import Data

WEIGHTS = Path(__file__).resolve().parent.parent / "worker" / "weights" / "sources" / "demo_weights"
SIDES = ("high", "low")
LORAS = ("turbo-t2v", "turbo-i2v", "style")
# Of the seconds in all: when the processes of the LoRAs begin to load (what loads first has the disk to itself), when
# drawing ends, when the experts do, when the LoRAs do, when everything is ended.
LOADED, DRAWN, EXPERTS_DONE, LORAS_DONE, ALL = 0.25, 0.6, 0.75, 0.94, 0.97
# No number that `training.train_demo` draws by.
_SEED = 23
_LEARNING_RATE = 1.5e-3


@dataclass(frozen=True, slots=True)
class Job:
    """What every process of a run knows; `began` is a time of `time.time()`."""

    folder: Path
    out: Path
    began: float
    seconds: float
    clips: int
    chunk: int
    size: int
    batch: int
    taught: int
    steps: int

    def left(self, share: float) -> float:
        """Seconds until `share` of the whole."""
        return self.began + share * self.seconds - time.time()

    def say(self, part: str, event: str, **figures: object) -> None:
        line = {"part": part, "event": event, "at": round(time.time() - self.began, 2), **figures}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        print(line, flush=True)

    def chunk_path(self, number: int) -> Path:
        return self.folder / f"clips-{number:04d}.pt"


def _one(given: tuple[int, int]) -> latents.Drawn:
    size, number = given
    drawn = latents.drawn(_SEED, size, number)
    return replace(drawn, latents=drawn.latents.astype("float16"))


def draw(job: Job) -> None:
    """Write chunks of clips until there are enough, or until the time for it is over."""
    cores = len(os.sched_getaffinity(0))
    # Forked before torch is loaded, so that drawing begins at once; a core is left to each expert.
    with multiprocessing.get_context("fork").Pool(max(1, cores - 2), os.nice, (5,)) as pool:
        drawn = pool.imap(_one, ((job.size, number) for number in range(job.clips)), chunksize=4)
        import torch
        from transformers import AutoTokenizer, UMT5EncoderModel

        from training import data

        torch.set_num_threads(1)
        reader: Any = (
            AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer"),
            UMT5EncoderModel.from_pretrained(WEIGHTS / "text_encoder", dtype=torch.float32).eval(),
        )
        job.say("draw", "loaded", cores=cores)
        made = 0
        for number in range(-(-job.clips // job.chunk)):
            some = list(islice(drawn, min(job.chunk, job.clips - made)))
            chunk = data.encoded(some, seed=_SEED, normal=_normal(), reader=reader)
            part = job.chunk_path(number).with_suffix(".part")
            torch.save({name: getattr(chunk, name) for name in chunk.__dataclass_fields__}, part)
            part.replace(job.chunk_path(number))
            made += len(some)
            if job.left(DRAWN) < 0:
                break
        pool.terminate()
    job.say("draw", "done", clips=made)


def _normal() -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    config = json.loads((WEIGHTS / "vae" / "config.json").read_text(encoding="utf-8"))
    return torch.tensor(config["latents_mean"]), torch.tensor(config["latents_std"])


class Chunks:
    """The clips that are drawn by now, on the device."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self._job, self._device, self._next = job, device, 0

    def more(self, data: Data | None = None) -> Data:
        """`data` and what has been drawn since; waits for the first clips."""
        import torch

        from training.experts import Data

        while data is None or self._job.chunk_path(self._next).exists():
            path = self._job.chunk_path(self._next)
            if path.exists():
                chunk = Data(**torch.load(path)).to(self._device)
                data = chunk if data is None else data.joined(chunk)
                self._next += 1
            elif self._job.left(EXPERTS_DONE) < 0:
                raise TimeoutError("no clip was drawn in time")
            else:
                time.sleep(0.1)
        return data


def expert(job: Job, side: str, device: torch.device) -> None:
    """Train one expert and keep it in half precision."""
    import torch

    from training import experts, plan
    from training.running import Run

    model = _shipped(WEIGHTS, side)
    chunks = Chunks(job, device)
    begun = chunks.more()
    job.say(side, "begins", clips=len(begun.latents))
    learned = replace(
        next(stage.plan for stage in plan.STAGES if stage.name == f"{side}{plan.SERVED_SIZE}"),
        steps=job.steps,
        batch=job.batch,
        learning_rate=_LEARNING_RATE,
    )
    run = Run(side, job.folder, seed=_SEED, minutes=max(1.0, job.left(EXPERTS_DONE)) / 60, device=device)
    experts.train(run, learned, model, begun, chunks.more)
    model.to("cpu", torch.float16).save_pretrained(str(job.folder / "made" / side))
    (job.folder / "made" / side).replace(job.folder / f"expert-{side}")
    job.say(side, "done", **run.last)


def _shipped(folder: Path, side: str) -> WanTransformer3DModel:
    """An expert of both tasks in float32, from `folder`/experts."""
    import torch
    from safetensors.torch import load_file

    from training import experts

    model = experts.new(experts.IMAGE_CHANNELS)
    state = load_file(folder / "experts" / side / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({name: value.to(torch.float32) for name, value in state.items()})
    return model


def loras(job: Job, name: str, device: torch.device) -> None:
    """Wait for the experts, then train the two LoRAs of `name`, each in half of what time is left."""
    from training import experts, lora, plan
    from training.running import Run

    chunks = Chunks(job, device)
    data = chunks.more()
    while not all((job.folder / f"expert-{side}").exists() for side in SIDES):
        if job.left(LORAS_DONE) < 0:
            raise TimeoutError("the experts were not there in time")
        time.sleep(0.1)
        data = chunks.more(data)
    key = "t2v" if name == "style" else name.removeprefix("turbo-")
    trained = Path(tempfile.mkdtemp(dir=job.folder)) / "experts"
    trained.mkdir()
    for side in SIDES:
        (trained / side).symlink_to(job.folder / f"expert-{side}")

    def served(side: str) -> WanTransformer3DModel:
        model = _shipped(trained.parent, side)
        model = (experts.narrowed(model) if key == "t2v" else model).eval().to(device)
        model.set_attn_processor(experts.PaddedCrossAttention())
        return model

    taught = replace(plan.STYLE if name == "style" else plan.TURBO, steps=job.steps, batch=max(1, job.batch // 2))
    spec = plan.MODELS[key]
    job.say(name, "begins", clips=len(data.latents))
    if name != "style":
        pairs = lora.teach(
            [served(side) for side in SIDES],
            data,
            spec,
            count=job.taught,
            steps=plan.TEACHER_STEPS,
            guidance=plan.TEACHER_GUIDANCE,
            batch=2 * job.batch,
        )
        job.say(name, "taught", clips=len(pairs.clips))
    else:
        restyled = lora.sepia(data.openings(), _normal())
    for rest, side in ((2, "high"), (1, "low")):
        model = served(side)
        label = f"sepia-{side}" if name == "style" else f"{name}-{side}"
        run = Run(label, job.folder, seed=_SEED, minutes=max(1.0, job.left(LORAS_DONE) / rest) / 60, device=device)
        if name == "style":
            stage = next(stage.plan for stage in plan.STAGES if stage.name == f"{side}{plan.SERVED_SIZE}")
            lora.style(run, taught, model, restyled, replace(stage, task="text_to_video"))
        else:
            stops = lora.turbo_sigmas()[:-1]
            own = [sigma for sigma in stops if (sigma >= (spec.boundary_ratio or 0)) == (side == "high")]
            lora.distil(run, taught, model, pairs, own)
        whole = job.folder / "loras" / f"{label}.safetensors"
        lora.save(model, whole.with_suffix(".part"))
        whole.with_suffix(".part").replace(whole)
        job.say(label, "done", **run.last)
