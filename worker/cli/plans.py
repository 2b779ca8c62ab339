"""`plans [--gpu NAME]`: the memory plans for one GPU, or the table of all of them in Markdown."""

from __future__ import annotations

from worker.base.errors import SettingsError, WorkerError
from worker.base.settings import Settings, load
from worker.cli import terminal
from worker.cli.failures import DONE
from worker.request import ModelSpec
from worker.request.catalogue import I2V_A14B, TI2V_5B
from worker.request.plan.gpus import GPUS, Gpu
from worker.request.plan.plan import MemoryPlan, Planner
from worker.request.plan.sizes import Shape

_GB = 1e9
_SHOWN: tuple[tuple[ModelSpec, Shape], ...] = (
    (I2V_A14B, Shape(832, 480, 81)),
    (I2V_A14B, Shape(1280, 720, 81)),
    (TI2V_5B, Shape(1280, 704, 121)),
)


def table(settings: Settings) -> str:
    """One row a GPU: the plan for each shown shape with its peak in GB, and the largest request of the A14B models."""
    head = [
        "GPU",
        "VRAM, GiB",
        *(f"{spec.name} {shape.width}x{shape.height}x{shape.num_frames}" for spec, shape in _SHOWN),
    ]
    rows = [[*head, "largest a14b"], ["---"] * (len(head) + 1)]
    for gpu in GPUS:
        cells = [_cell(gpu, spec, shape, settings) for spec, shape in _SHOWN]
        rows.append([gpu.name, f"{gpu.vram_bytes / 1024**3:.0f}", *cells, _largest_cell(gpu, settings)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def details(gpu: Gpu, settings: Settings) -> str:
    """Every shown plan on one GPU with its reasons, and the largest request that fits, one paragraph a model."""
    planner = Planner(gpu, settings)
    lines = [f"{gpu.name}: {gpu.vram_bytes / _GB:.1f} GB, of which torch may use {gpu.budget_bytes / _GB:.1f} GB"]
    for spec, shape in _SHOWN:
        lines += ["", f"{spec.version}, {shape}"]
        try:
            made = planner.plan(spec, shape)
        except WorkerError as refusal:
            lines.append(f"  refused: {refusal}")
        else:
            lines.append(f"  {made.rung}: peak {made.estimated_peak_bytes / _GB:.1f} GB, ")
            lines[-1] += f"host memory {made.host_bytes / _GB:.1f} GB"
            lines += [f"    {reason}" for reason in made.reasons]
        best = planner.largest(spec)
        lines.append(f"  largest request that fits: {best if best is not None else 'none'}")
    return "\n".join(lines) + "\n"


def _cell(gpu: Gpu, spec: ModelSpec, shape: Shape, settings: Settings) -> str:
    try:
        return _words(Planner(gpu, settings).plan(spec, shape))
    except WorkerError:
        return "refused"
    except SettingsError:
        return "not possible"


def _largest_cell(gpu: Gpu, settings: Settings) -> str:
    try:
        best = Planner(gpu, settings).largest(I2V_A14B)
    except SettingsError:
        return "none"
    return _size(best) if best is not None else "none"


def _words(made: MemoryPlan) -> str:
    return f"{made.rung}: {made.estimated_peak_bytes / _GB:.0f} GB".replace("_", " ")


def _size(shape: Shape) -> str:
    return f"{shape.width}x{shape.height}x{shape.num_frames}"


def run(gpu: Gpu | None) -> int:
    """Print the plans of `gpu`, or the table of all. Raises SettingsError where the settings allow none."""
    settings = load()
    text = table(settings) if gpu is None else details(gpu, settings)
    terminal.show([text.rstrip("\n")])
    return DONE
