"""An upload that a client sends again by itself gives the file of its first try, not a twin.

The `openai` client repeats a request whose answer it did not get, with `x-stainless-retry-count`
above zero and nothing else that tells the two apart.
Source: openai-python, `_base_client.py`; read 2026-11.
"""

import datetime as dt
import time
from dataclasses import dataclass

from app import turns
from app.db import files as rows
from app.db.engine import Database
from app.db.tables import File, now
from app.errors import Conflict
from app.objects import FileObject
from app.services.callers import Caller
from app.services.file_objects import file_object
from app.services.router import Way
from app.transfers import Upload

WITHIN = dt.timedelta(minutes=10)
"""How long ago the first try can have begun; as long as the client waits for an answer."""
WAIT_SECONDS = 20.0
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Repeats:
    """Looks for the first try of an upload. Raises DatabaseUnavailable."""

    database: Database
    wait_seconds: float = WAIT_SECONDS

    def first(self, caller: Caller, upload: Upload, way: Way) -> FileObject | None:
        """The file of the first try, None when that left nothing.

        It must be of the same key, content, name, purpose and target. One that is still being
        stored is waited for. Raises Conflict, to be tried again, when that takes too long.
        """
        end = time.monotonic() + self.wait_seconds
        while True:
            found = self._newest(caller, upload, way)
            if found is None:
                return None
            if found.state == "ready":
                return file_object(found)
            if time.monotonic() >= end:
                raise Conflict(
                    "the first try of this upload is still running",
                    headers={"Retry-After": "5", "x-should-retry": "true"},
                )
            turns.leave()
            time.sleep(_PAUSE_SECONDS)

    def _newest(self, caller: Caller, upload: Upload, way: Way) -> File | None:
        with self.database.read() as session:
            alike = rows.alike(
                session,
                owner=caller.owner,
                key_id=caller.key_id,
                sha256=upload.sha256,
                since=now() - WITHIN,
            )
        asked = upload.expires_after.seconds if upload.expires_after else None
        for file in alike:
            lasts = file.expires_at - file.created_at if file.expires_at else None
            if (
                (file.filename, file.purpose, file.bytes)
                == (upload.filename, upload.purpose, upload.size)
                and (file.kind, file.target_model_names) == (way.kind, list(way.names))
                and (None if lasts is None else int(lasts.total_seconds())) == asked
            ):
                return file
        return None
