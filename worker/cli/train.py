"""`train`: LoRAs trained on this machine, through the very flow that serves RunPod's jobs.

The data is served to the worker on loopback; a folder is packed into a ZIP for that. The LoRAs are stored in
OUTPUT_DIR, whatever bucket the settings name, then copied to `--out`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.base import log, scratch
from worker.base import settings as settings_module
from worker.base.errors import WorkerError
from worker.base.settings import Settings
from worker.cli import flags, generate, local_files, terminal
from worker.cli import out as places
from worker.cli.failures import DONE, CommandFailed, usage
from worker.cli.train_flags import FIELDS

if TYPE_CHECKING:
    from worker.jobs.services import Services
_LONGEST_S = 30 * 24 * 3600.0


def run(chosen: argparse.Namespace) -> int:
    """Exit status of the command. Raises CommandFailed, SettingsError and KeyboardInterrupt."""
    settings = generate.local_settings(chosen)
    if "job_timeout_s" not in settings.model_fields_set:  # a training may take days, and who runs it sees it
        settings = settings.model_copy(update={"job_timeout_s": _LONGEST_S})
    log.configure(
        level="INFO" if chosen.verbose else "ERROR",
        layout=settings.log_format,
        secrets=settings.secret_values(),
        stream=terminal.BesideBar(),
    )
    data = Path(chosen.data).expanduser()
    if not data.exists():
        raise usage(f"--data: there is no folder or file {chosen.data}")
    fields = {field: value for _, field, *_ in FIELDS if (value := getattr(chosen, field)) is not None}
    if chosen.sample_prompts is not None:
        fields["sample_prompts"] = chosen.sample_prompts
    with local_files.FileServer() as server, scratch.folder("job") as folder:
        fields["training_data_url"] = server.serve(_zipped(data, folder / "data.zip") if data.is_dir() else data)
        opened = (*settings.private_url_allowlist, str(server.address))
        return _train(fields, settings.model_copy(update={"private_url_allowlist": opened}), chosen)


def _zipped(folder: Path, archive: Path) -> Path:
    """The folder as a ZIP, without what is hidden."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                file.write(path, inside)
    return archive


def _train(fields: Mapping[str, Any], settings: Settings, chosen: argparse.Namespace) -> int:
    settings_module.quiet_imports()
    with terminal.Bar("starting"):
        from worker import start  # torch and Diffusers with it

        worker = start.build_worker(settings)
    try:
        # What it will take comes first: the data is read twice, and the GPU is used once.
        answer = asyncio.run(_answer({**fields, "dry_run": True}, worker))
        if answer["status"] == "completed" and not chosen.dry_run:
            if not chosen.json:
                terminal.show(_planned(answer))
            if chosen.confirm and not generate.confirmed():
                raise CommandFailed("nothing was trained")
            # The seed that was shown is the one that is used.
            answer = asyncio.run(_answer({**fields, "seed": answer["seed"]}, worker))
    except WorkerError as failure:
        return generate.failed(failure.as_dict(), flags.message_of(failure), as_json=chosen.json)
    finally:
        worker.gpu.shutdown(wait=False)
    return _conclude(answer, chosen)


async def _answer(fields: Mapping[str, Any], worker: Services) -> dict[str, Any]:
    """The answer of the job. Ctrl-C stops it within a step, and what is best so far is written."""
    from worker.jobs import flow

    event = {"id": f"cli-{uuid.uuid4().hex[:8]}", "input": {"train": dict(fields)}}
    return await terminal.followed(lambda bar: flow.run(event, worker, bar))


def _conclude(answer: dict[str, Any], chosen: argparse.Namespace) -> int:
    if answer["status"] != "completed":
        error = json.loads(answer["error"])
        return generate.failed(error, f"error: {error['message']}", as_json=chosen.json)
    if not chosen.dry_run:
        _copy(answer, Path(chosen.out).expanduser(), force=chosen.force)
    if chosen.json:
        terminal.show([json.dumps(answer, ensure_ascii=False)])
    else:
        terminal.show(_planned(answer) if chosen.dry_run else _made(answer))
    return DONE


def _copy(answer: dict[str, Any], folder: Path, *, force: bool) -> None:
    """Copy the files to `folder`; the answer then names the copies."""
    places_of = [(each, name) for each in (*answer["loras"], *answer["samples"]) for name in each]
    for each, name in places_of:
        if not str(each[name]).startswith("file://"):
            continue
        source = generate.path_of(each[name])
        try:
            places.copy(source, folder / source.name, force=force)
        except OSError as failure:
            reason = failure.strerror or str(failure)
            raise CommandFailed(f"error: --out: {folder / source.name}: {reason}\nit is there: {source}") from failure
        each[name] = str(folder / source.name)


def _planned(answer: Mapping[str, Any]) -> list[str]:
    data, chosen = answer["dataset"], answer["parameters"]
    steps = ", ".join(f"{each['expert'] or 'all'} {each['steps']}" for each in chosen["experts"])
    seconds, cost, peak = answer["estimated_seconds"], answer["cost_usd"], answer.get("estimated_peak_bytes")
    rows = [
        ("data", f"{data['clips']} clips, {data['held_out']} held out, {data['refused']} refused"),
        *(("refused", f"{each['name']}: {each['reason']}") for each in data["refused_files"]),
        ("size", f"{chosen['width']}x{chosen['height']}, {chosen['num_frames']} frames"),
        ("steps", f"{steps}, rank {chosen['rank']}, seed {answer['seed']}"),
        ("memory", chosen["memory_plan"] + (f": {peak / 1e9:.0f} GB at its peak" if peak is not None else "")),
        ("seconds", "no estimate for this device" if seconds is None else f"{seconds[0]:.0f} to {seconds[1]:.0f}"),
        *([("cost", f"at most {terminal.dollars(cost)}")] if cost is not None else []),
        *(("warning", warning) for warning in answer["warnings"]),
    ]
    return [line for label, text in rows for line in terminal.row(label, text)]


def _made(answer: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, str]] = []
    for name, expert in answer["experts"].items():
        before, after = expert["loss_before"], expert["loss_after"]
        learned = "nothing held out" if after is None else f"held-out loss {before:.4f} to {after:.4f}"
        rows.append((name, f"{learned}, step {expert['best_step']} of {expert['steps']} is the best"))
    rows += [("lora", each[name]) for each in answer["loras"] for name in ("high", "low", "source") if name in each]
    rows += [("sample", sample[f"{name}_url"]) for sample in answer["samples"] for name in ("before", "after")]
    rows.append(("seconds", ", ".join(f"{stage} {value:.1f} s" for stage, value in answer["timings"].items())))
    rows += [("warning", warning) for warning in answer["warnings"]]
    return [line for label, text in rows for line in terminal.row(label, text)]
