"""Who is signed in to the console: sessions on our side, a random token on the other.

A session is worth what the secret behind it is worth at each request: it is over when the key is
blocked, deleted, has expired or has another secret, when its user is blocked or gone, and when the
master key has changed.
"""

import datetime as dt
import hashlib
import hmac
import ipaddress
import math
import secrets
from contextlib import suppress
from dataclasses import dataclass

from app.db import limits
from app.db import sessions as rows
from app.db.engine import Database
from app.db.tables import ConsoleSession, now
from app.errors import NotAuthenticated, RateLimited
from app.services.access import Access
from app.services.callers import Caller, sha256

LIFETIME = dt.timedelta(hours=12)
"""The longest time that somebody stays signed in."""
IDLE = dt.timedelta(hours=2)
"""How long somebody stays signed in who does nothing."""
ATTEMPTS = 10
"""How often somebody may try to sign in from one address in a minute."""

_SEEN = dt.timedelta(minutes=1)
_AT_ONCE = 1000
_TOKEN_BYTES = 32
_LONGEST_TOKEN = 100


@dataclass(frozen=True)
class SignedIn:
    """Somebody who has just signed in, and the token that is his cookie from now on."""

    caller: Caller
    token: str


class Sessions:
    """Sessions of the console. All methods raise DatabaseUnavailable."""

    def __init__(self, database: Database, access: Access) -> None:
        self._database = database
        self._access = access

    def begin(self, secret: str, address: str | None, earlier: str | None = None) -> SignedIn:
        """Sign somebody in who presents this secret; his `earlier` session is over then.

        The token is always a new one: whoever has given him one before gains nothing. Raises
        NotAuthenticated, and RateLimited for the eleventh try from an address in a minute.
        """
        self._count_attempt(address)
        caller = self._access.authenticate(secret)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        moment = now()
        is_master = caller.key_id is None
        row = ConsoleSession(
            id=sha256(token),
            key_hash=None if is_master else caller.key_hash,
            master_mac=_mac(token, caller.key_hash) if is_master else None,
            created_at=moment,
            seen_at=moment,
            expires_at=min(filter(None, (moment + LIFETIME, caller.expires_at))),
        )
        with self._database.write() as session:
            if earlier:
                rows.drop(session, sha256(earlier))
            rows.add(session, row)
        return SignedIn(caller, token)

    def find(self, token: str, *, is_at_work: bool = True) -> Caller:
        """Who has this token. Raises NotAuthenticated for a session that is over.

        `is_at_work`: somebody has asked for something, not his browser by itself.
        """
        if len(token) > _LONGEST_TOKEN:
            raise _over()
        moment, session_id = now(), sha256(token)
        with self._database.read() as session:
            row = rows.by_id(session, session_id)
        if row is None:
            raise _over()
        if moment >= row.expires_at or moment >= row.seen_at + IDLE:
            self.end(token)
            raise _over()
        try:
            caller = self._holder(row, token)
        except NotAuthenticated:
            self.end(token)
            raise
        if is_at_work and moment >= row.seen_at + _SEEN:
            with self._database.write() as session:
                rows.seen(session, session_id, moment)
        return caller

    def end(self, token: str) -> None:
        """Sign somebody out."""
        with self._database.write() as session:
            rows.drop(session, sha256(token))

    def sweep(self) -> None:
        """Remove sessions that are over, some at a time."""
        moment = now()
        with self._database.write() as session:
            rows.sweep(session, moment, moment - IDLE, _AT_ONCE)

    def _holder(self, row: ConsoleSession, token: str) -> Caller:
        if row.key_hash is not None:
            return self._access.holder(row.key_hash)
        for master in self._access.masters():
            if hmac.compare_digest(_mac(token, master.key_hash), row.master_mac or ""):
                return master
        raise NotAuthenticated("the master key has changed")

    def _count_attempt(self, address: str | None) -> None:
        subject, moment = f"sign-in:{_network(address)}", now()
        with self._database.write() as session:
            limits.lock(session, subject)
            if limits.count(session, subject, "sign_in", ATTEMPTS, moment):
                return
            began = limits.minute_began_at(session, subject, "sign_in") or moment
        left = max(1, math.ceil((began + limits.WINDOW - moment).total_seconds()))
        raise RateLimited(
            f"too many attempts to sign in; try again in {left} seconds",
            headers={"Retry-After": str(left)},
        )


def _network(address: str | None) -> str:
    """Whose attempts are counted together: an address, or the network of an IPv6 one."""
    with suppress(ValueError):
        found = ipaddress.ip_address(address or "")
        if found.version == 6:
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found)
    return "unknown"


def _mac(token: str, master_hash: str) -> str:
    return hmac.new(token.encode(), master_hash.encode(), hashlib.sha256).hexdigest()


def _over() -> NotAuthenticated:
    return NotAuthenticated("the session is over; sign in again")
