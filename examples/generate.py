"""Makes a video on an endpoint of RunPod and fetches it: ENDPOINT_ID=... RUNPOD_API_KEY=... python generate.py"""

import os

from videogen_client import Client

with Client(os.environ["ENDPOINT_ID"], base_url=os.environ.get("RUNPOD_URL")) as client:
    job = client.submit({"prompt": "A red fox walks through fresh snow", "quality_preset": "turbo"})
    for progress in client.stream(job):
        print(progress.percent, progress.status)
    print(client.download(progress.answer["videos"][0], "fox.mp4"))
