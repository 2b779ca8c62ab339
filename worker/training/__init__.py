"""LoRA training: the data set, and the training itself."""

from worker.training.archive import fetch_archive
from worker.training.dataset import Clip, Dataset, read_dataset

__all__ = ["Clip", "Dataset", "fetch_archive", "read_dataset"]
