"""The VideoGen worker: a RunPod serverless job becomes Wan 2.2 videos, stored and told."""
