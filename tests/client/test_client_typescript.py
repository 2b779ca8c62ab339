"""client/typescript in TypeScript's strict mode: the file itself, and programs that use it. The compiler is Deno's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.kits.javascript import DENO, ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "client" / "typescript" / "videogen.mjs"
LIBRARIES = ["dom", "dom.iterable", "dom.asynciterable", "esnext"]
STRICT = {"compilerOptions": {"strict": True, "checkJs": True, "lib": LIBRARIES}}
# Every call with what it takes and returns. A line that must not compile is marked: the compiler refuses one that does.
PROGRAM = """
import { Client, VideoGenError, verifyWebhook } from %s;
import type { Answer, Job, JobState, Progress, Training, TrainingInput, VideoInput, Webhook } from %s;

const client = new Client({ endpointId: "abc", apiKey: "key", pollMs: 5 });
new Client({ baseUrl: "http://localhost:8000" });
// @ts-expect-error: the id is text
new Client({ endpointId: 3 });

const payload: VideoInput = { prompt: "a cat", num_frames: 81, resolution: "720p", loras: [{ source: "a/b" }] };
// @ts-expect-error: no such resolution
const wrong: VideoInput = { prompt: "a cat", resolution: "8k" };
// @ts-expect-error: the prompt is missing
client.generate({ num_frames: 81 });
// @ts-expect-error: no such field
client.generate({ prompt: "a cat", widht: 832 });

const onProgress = (said: Progress): number => said.progress;
const answer: Answer = await client.generate(payload, { timeoutMs: 5, onProgress });
const training: TrainingInput = { train: { training_data_url: "https://example.com/a.zip" } };
const trained: Training = await client.generate(training);
const again: Training = await client.train(training.train, { jobId: "style-1" });
const loras: string[] = [trained, again].flatMap((each) => each.loras ?? []).map((each) => JSON.stringify(each));

const job: Job = await client.submit(payload);
const state: JobState = await client.status(job.id);
const ended: JobState = await client.cancel(job);
const found: Answer = await client.result(job, { onProgress });
for (const video of [...answer.videos, ...found.videos]) {
  const bytes: Uint8Array = await client.download(video, { timeoutMs: 5 });
  // @ts-expect-error: a video that was not made has no URL
  video.video_url.length;
  if (video.status === "completed") bytes.length === video.size_bytes;
  else video.error.code.length;
}
try {
  const event: Webhook = await verifyWebhook("{}", new Headers(), "secret");
  if (event.type === "completed") event.data.job_id.length;
} catch (error) {
  if (error instanceof VideoGenError && error.retryable) [error.code, error.path, error.problems[0]?.path];
}
export { ended, loras, state, wrong };
"""
pytestmark = pytest.mark.skipif(DENO is None, reason="there is no deno: pip install -r builder/requirements-dev.txt")


def compiled(folder: Path, *files: Path) -> str:
    """What the compiler says; empty where it accepts them all."""
    config = folder / "deno.json"
    config.write_text(json.dumps(STRICT))
    command = [str(DENO), "check", "--quiet", "--no-remote", "--no-npm", "--no-lock", "--config", str(config)]
    environment = {**ENVIRONMENT, "DENO_DIR": str(folder / "cache")}
    done = subprocess.run(
        [*command, *map(str, files)], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.slow  # test_client_javascript runs the client
def test_the_client_and_programs_that_use_it_compile_in_strict_mode(tmp_path: Path) -> None:
    program = tmp_path / "program.ts"
    program.write_text(PROGRAM % (json.dumps(MODULE.as_uri()), json.dumps(MODULE.with_suffix(".d.mts").as_uri())))
    assert compiled(tmp_path, MODULE, program, ROOT / "examples" / "generate.mjs") == ""


@pytest.mark.slow  # test_client_javascript runs the client
def test_what_is_not_strict_does_not_compile(tmp_path: Path) -> None:
    loose = tmp_path / "loose.mjs"
    loose.write_text("export const length = (text) => text.length;\n")
    assert "implicitly has an 'any' type" in compiled(tmp_path, loose)
