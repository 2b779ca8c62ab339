import type {
  Answer, FoundProblem, Input, TrainInput, Training, VideoFailure, VideoResult, Webhook,
} from "./types.d.ts";
export type * from "./types.d.ts";

export type TrainingInput = Extract<Input, { train: TrainInput }>;
export type Job = { id: string; jobId?: string; payload?: Input };
export type Progress = {
  progress: number; status: string; index?: number | null; step?: number; steps?: number; eta_seconds?: number;
  preview_url?: string; preview_step?: number;
};
export type JobState = {
  id: string; status: "IN_QUEUE" | "IN_PROGRESS" | "COMPLETED" | "FAILED" | "CANCELLED" | "TIMED_OUT";
  output?: Answer | Progress; error?: string;
};
export type Options = {
  endpointId?: string; apiKey?: string; baseUrl?: string;
  pollMs?: number; requestMs?: number; attempts?: number; firstWaitMs?: number;
};

export class VideoGenError extends Error {
  code: string;
  path: string | null;
  retryable: boolean;
  problems: FoundProblem[];
  job: Job | string | null;
}

export class Client {
  constructor(options: Options);
  generate(
    payload: TrainingInput, options?: { timeoutMs?: number; onProgress?: (progress: Progress) => void },
  ): Promise<Training>;
  generate(payload: Input, options?: { timeoutMs?: number; onProgress?: (progress: Progress) => void }): Promise<Answer>;
  train(
    settings: TrainInput, options?: { jobId?: string; timeoutMs?: number; onProgress?: (progress: Progress) => void },
  ): Promise<Training>;
  submit(payload: Input): Promise<Job>;
  status(job: Job | string, options?: { timeoutMs?: number }): Promise<JobState>;
  result(job: Job | string, options?: { timeoutMs?: number; onProgress?: (progress: Progress) => void }): Promise<Answer>;
  cancel(job: Job | string): Promise<JobState>;
  download(video: VideoResult | VideoFailure, options?: { timeoutMs?: number }): Promise<Uint8Array>;
}

export function verifyWebhook(body: string, headers: Headers | Record<string, string>, secret: string): Promise<Webhook>;
