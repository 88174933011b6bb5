"""The wait, within a bound, for a file that its upstream is still at work on."""

import time

from app import turns
from app.errors import Conflict, InvalidRequest
from app.providers.protocol import Provider, StoredFile

_NOT_READY_SECONDS = 10


def await_processed(
    provider: Provider, raw: str, handed: str, param: str, seconds: float
) -> StoredFile:
    """The file once its upstream has processed it.

    Raises Conflict after so many seconds, InvalidRequest when the upstream could not process it.
    """
    name = provider.deployment.provider
    end = time.monotonic() + seconds
    pause = 0.2
    while (stored := provider.retrieve(raw)).status == "uploaded":
        if time.monotonic() + pause > end:
            raise Conflict(
                f"the file {handed} is still being processed by {name}; try again later",
                code="file_not_ready",
                param=param,
                # Unlike other conflicts this one goes away, and nothing was started.
                headers={"x-should-retry": "true", "Retry-After": str(_NOT_READY_SECONDS)},
            )
        turns.leave()
        time.sleep(pause)
        pause = min(pause * 1.5, 5.0)
    if stored.status == "error":
        raise InvalidRequest(
            f"{name} could not process the file {handed}: "
            f"{stored.status_details or 'no reason given'}",
            param=param,
        )
    return stored
