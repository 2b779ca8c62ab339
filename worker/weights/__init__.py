"""The model cache on the volume: locate, download, verify, convert.

`ensure` returns a folder that `from_pretrained` can load; it downloads and repairs what is needed for that. A
`ModelCache` says where to search, in this order: weights made by `builder.prepare`, MODEL_CACHE_DIR, RunPod's cached
models, the hub.

What is written under a model cache:

    Wan-AI--Wan2.2-I2V-A14B-Diffusers/       the repository, / written as --
        0123abcd.../                         the commit; a Diffusers folder
            videogen.json                    repository, commit, and size, sha256, block hashes of every file
            transformer/X.safetensors.HASH.incomplete    being downloaded; the next worker continues it
            transformer/X.safetensors.corrupt            was damaged, was fetched again; may be deleted
        0123abcd...-bf16/, ...-fp8/          made by builder.prepare; unchanged files are hard links
    .locks/                                  empty lock files; the kernel frees a lock when its holder dies

What is read there too: NAME/ and ORG/NAME/ (with a model_index.json), and the hub client's own layout
models--ORG--NAME/snapshots/COMMIT. Such folders get a `videogen.json` where they are writable, so that later starts
notice when a file has changed. If they are damaged, they are repaired in place. A file that two models share (the text
encoder, the VAE) is stored once: the second is a hard link.
"""

from __future__ import annotations

from worker.weights.folder.check import check, verify
from worker.weights.folder.places import RUNPOD_CACHE, ModelCache, ModelFolder, diffusers_repo

__all__ = ["RUNPOD_CACHE", "ModelCache", "ModelFolder", "check", "diffusers_repo", "verify"]
