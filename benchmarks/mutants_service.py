"""The mutants of a job, of what leaves the worker, and of the weights."""

from __future__ import annotations

from benchmarks.mutants_engine import Mutant

_OUTBOX, _TEST_OUTBOX = "worker/delivery/webhooks/outbox.py", "tests/unit/delivery/test_outbox.py"
_CHANNEL = "worker/delivery/webhooks/channel.py"
_TEST_CHANNEL = (
    "tests/unit/delivery/test_webhooks.py"
    " tests/faults/test_webhook_attempts.py tests/faults/test_webhook_outbox.py tests/faults/test_webhook_hurry.py"
)
_JOURNAL, _TEST_JOURNAL = "worker/delivery/journal.py", "tests/unit/delivery/test_journal.py"
_TRANSFER = "worker/weights/hub/transfer.py"
_TRANSFERS = "tests/unit/weights/test_transfer.py"
_DOWNLOADS = "tests/unit/weights/test_weights_download.py tests/unit/weights/test_weights_failures.py"
_INTEGRITY = "tests/unit/weights/test_weights_integrity.py"
_CHECK = "worker/weights/folder/check.py"
_SIGTERM, _TEST_SIGTERM = "worker/base/sigterm.py", "tests/unit/base/test_shutdown.py"
_ANSWERS, _TEST_ANSWERS = "worker/jobs/answers.py", "tests/unit/jobs/test_answers.py"
_SPACES, _TEST_SPACES = "worker/delivery/storage/spaces.py", "tests/unit/delivery/test_storage_spaces.py"
_EVENTS, _TEST_EVENTS = "worker/delivery/webhooks/envelopes.py", "tests/unit/delivery/test_envelopes.py"

_OF_A_JOB = (
    Mutant(
        "first and last image swapped in the job",
        "worker/jobs/prepare.py",
        'fitted.get("reference_image_url"), fitted.get("last_image_url")',
        'fitted.get("last_image_url"), fitted.get("reference_image_url")',
        "tests/flow/test_modes.py tests/unit/jobs -k 'first or last'",
    ),
    Mutant(
        "a reference video's odd frames",
        "worker/jobs/prepare.py",
        "count = (len(frames) - 1) // video.spec.frame_stride * video.spec.frame_stride + 1",
        "count = len(frames)",
        "tests/flow/test_modes.py -k resampled",
    ),
    Mutant(
        "a redelivered job with new seeds",
        "worker/jobs/accept.py",
        "replace(video, seed=seed) for video, seed in zip",
        "replace(video, seed=seed if seed is None else video.seed) for video, seed in zip",
        "tests/flow/test_job.py tests/unit/jobs -k 'seed or again or redeliver'",
    ),
    Mutant(
        "a video that is gone counts as stored",
        "worker/jobs/accept.py",
        'if not storage.holds(key + suffix_of(result), sha256=result["sha256"], stop=stop):',
        "if False:",
        "tests/unit/jobs",
    ),
    Mutant(
        "a prompt in the log",
        "worker/base/log.py",
        "for secret in (*self._secrets, *_private.get()):",
        "for secret in self._secrets:",
        "tests/unit/base/test_log_hidden.py",
    ),
    Mutant(
        "no negative prompt in the result",
        _ANSWERS,
        '"negative_prompt": request.negative_prompt',
        '"negative_prompt": ""',
        f"{_TEST_ANSWERS} tests/flow/test_job.py",
    ),
    Mutant(
        "a partial job called completed",
        _ANSWERS,
        '"completed" if delivered == len(videos) else "partial"',
        '"completed" if delivered else "partial"',
        f"{_TEST_ANSWERS} tests/flow/test_job.py",
    ),
    Mutant(
        "SIGTERM without a grace",
        _SIGTERM,
        "call_later(self._grace_s, self._end)",
        "call_soon(self._end)",
        _TEST_SIGTERM,
    ),
    Mutant(
        "nobody hurries when the grace is over",
        _SIGTERM,
        "stop.request(ShuttingDown())\n            hurry()",
        "stop.request(ShuttingDown())",
        _TEST_SIGTERM,
    ),
    Mutant(
        "the last reason of a stop stays",
        "worker/base/stop.py",
        "if not self.event.is_set():",
        "if True:",
        "tests/unit/base/test_stop.py",
    ),
)

_OF_DELIVERY = (
    Mutant(
        "the last record of a video stays", _JOURNAL, "known is not None and known != replacing", "False", _TEST_JOURNAL
    ),
    Mutant(
        "another payload under a known job id",
        _JOURNAL,
        "if known.payload_digest != payload_digest:",
        "if False:",
        _TEST_JOURNAL,
    ),
    Mutant(
        "entries that never expire",
        _JOURNAL,
        "self._now() - entry.accepted_at > files.KEEP_S",
        "False",
        _TEST_JOURNAL,
    ),
    Mutant(
        "a kept copy taken unchecked",
        "worker/delivery/spool_files.py",
        "if not whole:",
        "if False:",
        "tests/unit/delivery/test_spool_damage.py",
    ),
    Mutant(
        "every event of a silent receiver with all attempts",
        _CHANNEL,
        "self._silent = not all(outcome.settled for outcome in tried)",
        "self._silent = False",
        _TEST_CHANNEL,
    ),
    Mutant(
        "a job's budget for a silent receiver that is never spent",
        _CHANNEL,
        "max(0.0, self._left_s - seconds) if self._silent else self._patience.job_s",
        "self._patience.job_s",
        _TEST_CHANNEL,
    ),
    Mutant(
        "the outbox's order by what is left",
        _OUTBOX,
        'int(line[-1].name.split("-")[1]) + 1 if line',
        "len(line) if line",
        _TEST_OUTBOX,
    ),
    Mutant(
        "a receiver that answers again is not forgiven",
        "worker/delivery/webhooks/outbox.py",
        "self._rests.forgive(letter.url)",
        "pass",
        "tests/unit/delivery/test_outbox_rests.py",
    ),
    Mutant(
        "a redirect counts as delivered",
        "worker/delivery/webhooks/postman.py",
        "if 200 <= answer.status < 300:",
        "if 200 <= answer.status < 400:",
        "tests/unit/delivery/test_postman.py tests/unit/delivery/test_webhooks.py",
    ),
    Mutant(
        "signed by the first secret alone",
        _EVENTS,
        "for secret in secrets)",
        "for secret in secrets[:1])",
        _TEST_EVENTS,
    ),
    Mutant(
        "one event id for both ends of a video",
        _EVENTS,
        "json.dumps([job_id, payload_digest, index, kind])",
        "json.dumps([job_id, payload_digest, index])",
        _TEST_EVENTS,
    ),
    Mutant(
        "an upload that is not read back",
        _SPACES,
        "or stored_sha256 != item.sha256:",
        "or False:",
        f"{_TEST_SPACES} tests/unit/delivery/test_storage_spaces_integrity.py",
    ),
    Mutant("links that last another time", _SPACES, "ExpiresIn=self._presign_expiry_s", "ExpiresIn=60", _TEST_SPACES),
)

_OF_THE_WEIGHTS = (
    Mutant("fewer retries", _TRANSFER, "count: int = 5", "count: int = 1", _TRANSFERS),
    Mutant(
        "an endless Retry-After",
        _TRANSFER,
        "min(_retry_after_s(failure), self._retries.max_retry_after_s)",
        "_retry_after_s(failure)",
        _TRANSFERS,
    ),
    Mutant(
        "bytes beyond the announced size",
        _TRANSFER,
        "piece = piece[: partial.size - partial.have]",
        "piece = piece[:]",
        _TRANSFERS,
    ),
    Mutant("a partial file that is too long", _TRANSFER, "if self.have > self.size:", "if False:", _TRANSFERS),
    Mutant(
        "damaged bytes are taken",
        "worker/weights/hub/download.py",
        "if file.is_content(partial_path, sha256):",
        "if True:",
        f"{_DOWNLOADS} {_INTEGRITY}",
    ),
    Mutant("a file longer than recorded", _CHECK, "if size != entry.size:", "if size < entry.size:", _INTEGRITY),
    Mutant("a zero-filled tail", _CHECK, "and not any(tail):", "and False:", _INTEGRITY),
    Mutant("a changed block", _CHECK, "if _block(file.fileno(), offset) != digest:", "if False:", _INTEGRITY),
)

MUTANTS = (*_OF_A_JOB, *_OF_DELIVERY, *_OF_THE_WEIGHTS)
