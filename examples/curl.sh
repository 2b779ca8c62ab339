#!/bin/sh
# Makes a video on an endpoint of RunPod and fetches it: ENDPOINT_ID=... RUNPOD_API_KEY=... ./curl.sh (needs curl and jq)
set -eu
api() { curl -fsS --retry 5 --max-time 30 -H "Authorization: Bearer $RUNPOD_API_KEY" "$@"; }
url="${RUNPOD_URL:-https://api.runpod.ai/v2}/$ENDPOINT_ID"
# A job_id of your own: sent again under it, nothing is made twice.
input='{"input": {"job_id": "fox-1", "prompt": "A red fox walks through fresh snow", "quality_preset": "turbo"}}'
id=$(api -H 'Content-Type: application/json' -d "$input" "$url/run" | jq -r .id)
while state=$(api "$url/status/$id") && printf '%s' "$state" | jq -e '.status | test("IN_")' > /dev/null; do sleep 2; done
printf '%s' "$state" | jq -e '.status == "COMPLETED"' > /dev/null || { printf '%s\n' "$state" >&2; exit 1; }
curl -fsS --retry 5 -o fox.mp4 "$(printf '%s' "$state" | jq -r '.output.videos[0].video_url')"
printf '%s  fox.mp4\n' "$(printf '%s' "$state" | jq -r '.output.videos[0].sha256')" | sha256sum -c
