"""Where finished videos are stored: one storage for the life of the process, chosen by the settings.

To add one, write its file and its line in `STORAGES`: docs/adding-a-storage.md.
"""

from __future__ import annotations

from worker.base.settings import Settings
from worker.delivery.storage.base import Storage, StorageKind, video_key
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import SpacesStorage

__all__ = ["STORAGES", "Storage", "open_storage", "video_key"]

# The first kind that the settings configure serves. The folder needs no settings, so it stands last.
STORAGES: tuple[StorageKind, ...] = (SpacesStorage, LocalStorage)


def open_storage(settings: Settings) -> Storage:
    """The storage that the settings name; asks nothing of the network.

    Raises SettingsError where an address, bucket or region cannot be used.
    """
    return next(kind for kind in STORAGES if kind.is_configured(settings)).from_settings(settings)
