// Makes a video on an endpoint of RunPod and fetches it: ENDPOINT_ID=... RUNPOD_API_KEY=... node generate.mjs
import { writeFile } from "node:fs/promises";
import { Client } from "../client/typescript/videogen.mjs";

const { ENDPOINT_ID: endpointId, RUNPOD_API_KEY: apiKey, RUNPOD_URL: baseUrl } = process.env;
const client = new Client({ endpointId, apiKey, baseUrl });
const answer = await client.generate(
  { prompt: "A red fox walks through fresh snow", quality_preset: "turbo" },
  { onProgress: ({ progress, status }) => console.log(progress, status) },
);
await writeFile("fox.mp4", await client.download(answer.videos[0]));
console.log("fox.mp4");
