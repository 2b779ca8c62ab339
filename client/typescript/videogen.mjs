// @ts-self-types="./videogen.d.mts"
// A client of VideoGen-RunPod for Node 20 and browsers: fetch and WebCrypto alone. Types are in videogen.d.mts; a test
// compiles this file against them in TypeScript's strict mode.

/**
 * @typedef {import("./videogen.d.mts").Client} Declared
 * @typedef {import("./videogen.d.mts").Job} Job
 * @typedef {import("./videogen.d.mts").JobState} JobState
 * @typedef {import("./videogen.d.mts").Progress} Progress
 * @typedef {import("./types.d.ts").FoundProblem} FoundProblem
 * @typedef {import("./types.d.ts").Input} Input
 * @typedef {import("./types.d.ts").VideoFailure} VideoFailure
 * @typedef {import("./types.d.ts").VideoResult} VideoResult
 * @typedef {{ timeoutMs?: number, onProgress?: (progress: Progress) => void }} Waiting
 * @typedef {{ status: number, content: Record<string, any> | null }} Reply
 */

const RUNPOD_URL = "https://api.runpod.ai/v2";
const ENDED = ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"];
const REFUSALS = ["invalid_request", "unsupported", "input_blocked"];
const WEBHOOK_TOLERANCE_S = 300;

/** `code` is one of docs/errors.md, or of the client: `unavailable`, `refused`, `not_found`, `cancel_refused`,
 * `wait_timeout`, `unexpected_answer`, `download_failed`, `download_corrupt`, `invalid_signature`. */
export class VideoGenError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{ path?: string | null, retryable?: boolean, problems?: FoundProblem[], job?: Job | string | null }} [more]
   */
  constructor(code, message, { path = null, retryable = false, problems = [], job = null } = {}) {
    super(`${code}: ${message}`);
    this.name = "VideoGenError";
    this.code = code;
    this.path = path;
    this.retryable = retryable;
    this.problems = problems;
    this.job = job;
  }
}

/** @implements {Declared} */
export class Client {
  #url; #key; #local; #timing;

  /** @param {import("./videogen.d.mts").Options} options */
  constructor({ endpointId, apiKey, baseUrl, pollMs = 2000, requestMs = 30_000, attempts = 8, firstWaitMs = 500 }) {
    if (endpointId === undefined && baseUrl === undefined) throw new TypeError("give endpointId and apiKey, or baseUrl");
    if (endpointId !== undefined && !apiKey) throw new TypeError("apiKey is missing");
    this.#local = endpointId === undefined;
    const base = (baseUrl ?? RUNPOD_URL).replace(/\/+$/, "");
    this.#url = endpointId === undefined ? base : `${base}/${encodeURIComponent(endpointId)}`;
    this.#key = apiKey;
    this.#timing = { pollMs, requestMs, attempts, firstWaitMs };
  }

  /** Sends the payload, waits, and returns the answer.
   * @param {any} payload an Input or a TrainingInput
   * @param {Waiting} [options]
   * @returns {Promise<any>} its Answer or Training */
  async generate(payload, { timeoutMs = 3_600_000, onProgress } = {}) {
    const until = Date.now() + timeoutMs;
    const job = await this.submit(payload);
    return this.result(job, { timeoutMs: until - Date.now(), onProgress });
  }

  /** Trains a LoRA, waits, and returns what came of it.
   * @param {import("./types.d.ts").TrainInput} settings
   * @param {Waiting & { jobId?: string }} [options] */
  train(settings, { jobId, timeoutMs = 86_400_000, onProgress } = {}) {
    return this.generate({ train: settings, job_id: jobId }, { timeoutMs, onProgress });
  }

  /** A request whose answer was lost is sent again under the same `job_id`: the worker makes each video once.
   * @param {Input} payload
   * @returns {Promise<Job>} */
  async submit(payload) {
    const input = { ...payload, job_id: payload.job_id ?? crypto.randomUUID() };
    const found = await this.#content("POST", "run", { input });
    if (typeof found.id !== "string") throw new VideoGenError("unexpected_answer", "the endpoint sent no id of a job");
    return { id: found.id, jobId: input.job_id, payload: input };
  }

  /** RunPod's state of a job: `{id, status, output, error}`. On a local worker this runs the job.
   * @param {Job | string} job
   * @param {{ timeoutMs?: number }} [options]
   * @returns {Promise<JobState>} */
  async status(job, { timeoutMs } = {}) {
    const id = idOf(job);
    const found = await this.#content(this.#local ? "POST" : "GET", `status/${encodeURIComponent(id)}`, undefined, timeoutMs);
    if (this.#local && found.error === "Job ID not found") throw notFound(job);
    return found;
  }

  /** Waits for the job. `onProgress` is called with each progress that is reported, previews among it.
   * @param {Job | string} job
   * @param {Waiting} [options]
   * @returns {Promise<any>} its Answer or Training */
  async result(job, { timeoutMs = 3_600_000, onProgress } = {}) {
    const until = Date.now() + timeoutMs;
    let shown = "";
    for (let sentAgain = false, left = timeoutMs; left > 0; left = until - Date.now()) {
      let state;
      try {
        state = await this.status(job, { timeoutMs: this.#local ? left : Math.min(left, this.#timing.requestMs) });
      } catch (error) {
        const { code } = /** @type {VideoGenError} */ (error);
        if (code === "unavailable" && Date.now() >= until) break;
        if (code !== "not_found" || sentAgain || typeof job === "string" || job.payload === undefined) throw error;
        sentAgain = true; // what the worker has made is in its journal, under the same job_id
        job = await this.submit(job.payload);
        continue;
      }
      if (ENDED.includes(state.status)) return delivered(state, job);
      const progress = JSON.stringify(state.output ?? null);
      if (state.output !== undefined && "progress" in state.output && progress !== shown) {
        shown = progress;
        onProgress?.(state.output);
      }
      await sleep(Math.max(0, Math.min(this.#timing.pollMs, until - Date.now())));
    }
    throw new VideoGenError("wait_timeout", "the job goes on: result() waits for it again", { retryable: true, job });
  }

  /** The state afterwards: a job that had ended before keeps its answer.
   * @param {Job | string} job
   * @returns {Promise<JobState>} */
  async cancel(job) {
    if (this.#local) throw new VideoGenError("cancel_refused", "a local worker runs a job to its end", { job });
    const reply = await this.#send("POST", `cancel/${encodeURIComponent(idOf(job))}`);
    if (reply.status === 200 && reply.content?.status === "CANCELLED") return /** @type {any} */ (reply.content);
    if ([0, 401, 403, 429].includes(reply.status) || reply.status >= 500) contentOf(reply);
    const state = await this.status(job);
    if (ENDED.includes(state.status)) return state;
    throw new VideoGenError("cancel_refused", `the job runs on (${reply.status})`, { job });
  }

  /** The bytes of a video of an answer; size and sha256 are those of the answer.
   * @param {VideoResult | VideoFailure} video
   * @param {{ timeoutMs?: number }} [options]
   * @returns {Promise<Uint8Array>} */
  async download(video, { timeoutMs = 1_800_000 } = {}) {
    if (video.status === "failed") throw failureOf(video.error, "internal", "the video was not made", video.problems);
    if (video.video_base64 !== undefined) {
      const bytes = decode(video.video_base64);
      if (await isWhole(bytes, video)) return bytes;
      throw new VideoGenError("download_corrupt", "video_base64 is not what the worker made", { retryable: true });
    }
    const url = video.video_url ?? "";
    if (!/^https?:/.test(url)) throw new VideoGenError("download_failed", "the video has no web address");
    const until = Date.now() + timeoutMs;
    /** @type {Uint8Array<ArrayBuffer>[]} */
    let pieces = [];
    let size = 0, failed = 0, corrupt = 0;
    while (failed < this.#timing.attempts && Date.now() < until) {
      const before = size;
      const reply = await fetchFrom(url, size, until);
      if ([401, 403, 404, 410].includes(reply.status)) {
        const message = `the storage answered ${reply.status}: send the job again under the same job_id for another link`;
        throw new VideoGenError("download_failed", message);
      }
      if (reply.status === 416) [pieces, size] = [[], 0];
      if (reply.status === 200) [pieces, size] = [[], 0];
      try {
        for await (const piece of (reply.ok && reply.body) || []) {
          pieces.push(piece);
          size += piece.length;
          if (size > video.size_bytes) break;
        }
      } catch { /* the line broke: go on from here */ }
      if (size >= video.size_bytes) {
        const bytes = new Uint8Array(await new Blob(pieces).arrayBuffer());
        if (await isWhole(bytes, video)) return bytes;
        [pieces, size] = [[], 0];
        if (++corrupt === 2) throw new VideoGenError("download_corrupt", "what arrived is not what the worker made", { retryable: true });
        continue;
      }
      failed = size > before ? 0 : failed + 1;
      if (failed) await sleep(this.#timing.firstWaitMs * 2 ** failed);
    }
    throw new VideoGenError("download_failed", "the file could not be fetched from the storage", { retryable: true });
  }

  /** @param {string} method @param {string} path @param {unknown} [body] @param {number} [timeoutMs]
   * @returns {Promise<any>} */
  async #content(method, path, body, timeoutMs) {
    const reply = await this.#send(method, path, body, timeoutMs);
    if (path !== "run" && [404, 410].includes(reply.status)) throw notFound(null);
    return contentOf(reply);
  }

  /** Tried again on 429, 5xx and broken connections; status 0 where no answer came.
   * @param {string} method @param {string} path @param {unknown} [body] @param {number} [timeoutMs] */
  async #send(method, path, body, timeoutMs = this.#timing.requestMs) {
    const headers = { "Content-Type": "application/json", ...(this.#key && { Authorization: `Bearer ${this.#key}` }) };
    const until = Date.now() + Math.max(timeoutMs, 2 * this.#timing.requestMs);
    for (let attempt = 1; ; attempt++) {
      /** @type {Reply} */
      let reply = { status: 0, content: null };
      let retryAfter;
      try {
        const signal = AbortSignal.timeout(timeoutMs);
        const response = await fetch(`${this.#url}/${path}`, { method, headers, signal, redirect: "manual", body: body === undefined ? undefined : JSON.stringify(body) });
        retryAfter = response.headers.get("Retry-After");
        const text = await response.text();
        reply = { status: response.status, content: parsed(text) };
      } catch { /* no answer */ }
      const passes = reply.status === 0 || reply.status === 429 || reply.status >= 500;
      if (!passes || attempt === this.#timing.attempts || Date.now() >= until) return reply;
      const waitMs = this.#timing.firstWaitMs * Math.min(30, 2 ** attempt) * (0.5 + Math.random() / 2);
      await sleep(/^\d+$/.test(retryAfter ?? "") ? Math.min(30, Number(retryAfter)) * 1000 : waitMs);
    }
  }
}

/** The event in `body` (what came over the wire, as text), or a VideoGenError: answer 401. `secret` may be several.
 * @param {string} body @param {Headers | Record<string, string>} headers @param {string} secret
 * @returns {Promise<import("./types.d.ts").Webhook>} */
export async function verifyWebhook(body, headers, secret) {
  const has = /** @type {Headers} */ (headers); // also one of another library
  const plain = /** @type {Record<string, string>} */ (headers);
  const pairs = typeof has.entries === "function" ? [...has.entries()] : Object.entries(plain);
  const lower = Object.fromEntries(pairs.map(([name, value]) => [name.toLowerCase(), value]));
  const [id, time, sent] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map((name) => lower[name] ?? "");
  const refused = new VideoGenError("invalid_signature", "no signature fits, or its time is more than 5 minutes off");
  if (!id || !(Math.abs(Date.now() / 1000 - Number(time || NaN)) <= WEBHOOK_TOLERANCE_S)) throw refused;
  const content = new TextEncoder().encode(`${id}.${time}.${body}`);
  for (const each of secret.split(/\s+/).filter(Boolean)) {
    const name = { name: "HMAC", hash: "SHA-256" };
    const key = await crypto.subtle.importKey("raw", decode(each.replace(/^whsec_/, "")), name, false, ["verify"]);
    for (const signature of sent.split(" ").filter((one) => one.startsWith("v1,"))) {
      if (await crypto.subtle.verify("HMAC", key, decode(signature.slice(3)), content)) return JSON.parse(body);
    }
  }
  throw refused;
}

/** @param {Job | string} job */
const idOf = (job) => (typeof job === "string" ? job : job.id);
/** @param {number} ms */
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** @param {Job | string | null} job */
function notFound(job) {
  const message = "the endpoint does not know the job: send it again under the same job_id, nothing is made twice";
  return new VideoGenError("not_found", message, { retryable: true, job });
}

/** @param {string} text @returns {Record<string, any> | null} */
function parsed(text) {
  try {
    const found = JSON.parse(text);
    return found !== null && typeof found === "object" && !Array.isArray(found) ? found : null;
  } catch {
    return null;
  }
}

/** @param {Reply} reply */
function contentOf({ status, content }) {
  if (status === 0) throw new VideoGenError("unavailable", "no answer from the endpoint", { retryable: true });
  if (status === 429 || status >= 500) throw new VideoGenError("unavailable", `the endpoint answered ${status}`, { retryable: true });
  if ([400, 413, 422].includes(status)) {
    throw failureOf(parsed(content?.error ?? ""), "invalid_request", `the endpoint does not accept the request (${status})`);
  }
  if (status < 200 || status > 299) throw new VideoGenError("refused", `the endpoint answered ${status}: check apiKey and endpointId`);
  if (content === null) throw new VideoGenError("unexpected_answer", "the endpoint sent something that is no JSON object");
  return content;
}

/** @param {{ status: JobState["status"], output?: any, error?: string }} state @param {Job | string} job */
function delivered(state, job) {
  const videos = Array.isArray(state.output?.videos) ? state.output.videos : null;
  if (videos?.some((/** @type {VideoResult | VideoFailure} */ video) => video.status === "completed")) return state.output;
  if (state.status === "COMPLETED" && state.output?.dataset) return state.output; // of a training
  /** @type {Record<string, [string, string]>} */
  const failures = { CANCELLED: ["cancelled", "the job was cancelled"], TIMED_OUT: ["timeout", "RunPod's execution timeout"] };
  const [code, message] = failures[state.status] ?? ["internal", "the job failed"];
  if (state.status === "COMPLETED" && videos === null) {
    throw new VideoGenError("unexpected_answer", "the job ended with something that is no answer of this worker", { job });
  }
  const said = state.error ?? state.output?.error ?? "";
  const error = parsed(said) ?? videos?.[0]?.error;
  throw failureOf(error, code, said && !error ? `${message}: ${said.slice(0, 500)}` : message, videos?.[0]?.problems ?? state.output?.problems, job);
}

/** The worker's error; RunPod's own has `error_message`.
 * @param {Record<string, any> | null | undefined} error @param {string} code @param {string} message
 * @param {FoundProblem[]} [problems] @param {Job | string | null} [job] */
function failureOf(error, code, message, problems = [], job = null) {
  /** @type {Record<string, any>} */
  const found = { code, message: error?.error_message ?? message, path: null, ...error };
  const retryable = found.retryable ?? !REFUSALS.includes(found.code);
  return new VideoGenError(found.code, found.message, { path: found.path, retryable, problems, job });
}

/** @param {string} url @param {number} start @param {number} until */
async function fetchFrom(url, start, until) {
  const headers = start ? { Range: `bytes=${start}-` } : undefined;
  try {
    return await fetch(url, { headers, signal: AbortSignal.timeout(Math.max(1, until - Date.now())) });
  } catch {
    return { status: 0, ok: false, body: null };
  }
}

/** @param {Uint8Array<ArrayBuffer>} bytes @param {VideoResult} video */
async function isWhole(bytes, { size_bytes, sha256 }) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return bytes.length === size_bytes && Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

/** @param {string} text */
function decode(text) {
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  } catch {
    return new Uint8Array(1); // fits nothing
  }
}
