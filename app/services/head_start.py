"""Files on their way to their deployments while they still arrive.

A head start is only ever a gain of time. Nothing of it can be stored before the upload's intent is
committed, because the file's last bytes are held back until then; and whatever goes wrong before
costs nothing but the head start: the file is sent from the spool, as if there had been none.
"""

import datetime as dt
import logging
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from app import faults, signals
from app.db.tables import now
from app.errors import GatewayError
from app.providers.protocol import StoredFile
from app.services.router import Route, Router, Way
from app.transfers import Arriving, GivenUpError, Upload

log = logging.getLogger("manifold.files")


class HeadStart:
    """One arriving file, being sent to some of its deployments already.

    `begun_at` is before the first byte went anywhere.
    """

    def __init__(self, upload: Upload, way: Way, arriving: Arriving) -> None:
        self.arriving = arriving
        self.begun_at: dt.datetime = now()
        self._upload = upload
        self._way = way
        self._keys: dict[str, str] = {}
        self._sends: dict[str, Future[StoredFile]] = {}

    def add(self, route: Route, key: str, sending: "Future[StoredFile]") -> None:
        """The file goes to this route's deployment, as the attempt with this key."""
        self._keys[route.deployment.id] = key
        self._sends[route.deployment.id] = sending

    def is_of(self, upload: Upload, way: Way) -> bool:
        """Whether the file that came is the one that was announced, and goes to the same places."""
        came = replace(upload, sha256=self._upload.sha256, arriving=self._upload.arriving)
        return came == self._upload and way == self._way

    def key_of(self, route: Route) -> str | None:
        """The key of the attempt at this deployment, None when there is none."""
        return self._keys.get(route.deployment.id)

    def let_go(self) -> None:
        """Let the last bytes go: the intent is committed, with the keys of all attempts.

        What has failed before has stored nothing, and is no attempt any more.
        """
        for deployment_id, sending in list(self._sends.items()):
            if sending.done() and sending.exception() is not None:
                del self._sends[deployment_id]
        self.arriving.let_go()

    def outcome_of(self, route: Route) -> Callable[[], StoredFile] | None:
        """What waits for the end of the attempt at this deployment, None when there is none."""
        sending = self._sends.get(route.deployment.id)
        return None if sending is None else sending.result

    def give_up(self) -> None:
        """End what was begun, unless it was let go."""
        self.arriving.give_up()


class HeadStarts:
    """Begins to send arriving files, as long as there is a thread for each of their deployments."""

    def __init__(self, router: Router, threads: int) -> None:
        self._router = router
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="head-start")
        self._lock = threading.Lock()
        self._free = threads

    def begin(self, upload: Upload, way: Way) -> HeadStart | None:
        """Send an upload whose first bytes are on disk; None where it has to be complete first.

        A batch file's rows are checked and rewritten before they go anywhere, and what is in memory
        has come already.
        """
        if upload.purpose == "batch" or isinstance(upload.source, bytes):
            return None
        routes = list(way.routes)
        if way.kind != "unified":
            routes = self._router.order(routes, lambda route: route.deployment.id)[:1]
        routes = [route for route in routes if not route.provider.is_on_this_disk]
        if not routes or not self._take(len(routes)):
            return None
        arriving = Arriving(upload.source, upload.size)
        upload = replace(upload, arriving=arriving)
        begun = HeadStart(upload, way, arriving)
        for route in routes:
            key = secrets.token_hex(16)
            send = partial(self._send, route, replace(upload, key=key))
            sending = self._pool.submit(signals.tell().carried(route.deployment.id, send))
            sending.add_done_callback(self._give_back)
            begun.add(route, key, sending)
        faults.point("head start begun")
        return begun

    def _send(self, route: Route, upload: Upload) -> StoredFile:
        try:
            with self._router.counted(route.deployment.id):
                return route.provider.upload(upload)
        except (GivenUpError, GatewayError) as error:
            log.debug(
                "head start lost",
                extra={"deployment": route.deployment.id, "error": type(error).__name__},
            )
            raise

    def _take(self, count: int) -> bool:
        with self._lock:
            if self._free < count:
                return False
            self._free -= count
            return True

    def _give_back(self, _sending: "Future[StoredFile]") -> None:
        with self._lock:
            self._free += 1
