"""Requests with an idempotency key are done once, however often they are sent.

The row of a request is committed before it is begun, with the row id of what it will make. When
its process dies, the next try of the same request looks at what has become of that before it makes
another one. Answers are kept encrypted for a day: some hold a new key's secret, and what decrypts
them, the caller's key and the idempotency key, is stored nowhere.
Source: draft-ietf-httpapi-idempotency-key-header-07; its 422 and 409 are ours.
"""

import base64
import datetime as dt
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from app import faults, ids
from app.db import once as rows
from app.db.engine import Database
from app.db.tables import SingleRequest, now
from app.errors import Conflict, DatabaseUnavailable, GatewayError, KeyReused
from app.services.callers import Caller
from app.services.leases import LEASE_SECONDS, Leases

log = logging.getLogger("manifold.once")

LIFETIME = dt.timedelta(days=1)
"""How long the answer of a request is given again."""


@dataclass(frozen=True)
class Secrets:
    """What a request is known by: the secret of its caller, and its idempotency key."""

    caller: str
    key: str


@dataclass(frozen=True)
class Turn:
    """The right to do a request now.

    `object_uuid` is to be the row id of what it makes; `is_second` says that an earlier try, whose
    outcome nobody knows, may have made it.
    """

    id: str
    object_uuid: str
    is_second: bool = False


@dataclass(frozen=True)
class Answered:
    """A request that was done already, with what it was answered."""

    answer: dict[str, Any]


class Once:
    """Who does a request, and what it was answered. All methods raise DatabaseUnavailable."""

    def __init__(self, database: Database, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._leases = Leases(database, lease_seconds, rows.renew)

    def begin(self, caller: Caller, secrets: Secrets, fingerprint: str) -> Turn | Answered:
        """Take the turn of a request, or learn its answer.

        `fingerprint` is the SHA-256 in hex of all that it asks for. Raises Conflict while another
        try of it is running, KeyReused when its idempotency key was sent with something else.
        """
        request_id = _digest(caller.key_id or caller.owner, secrets.key)
        turn = Turn(request_id, ids.new_uuid())
        moment = now()
        row = SingleRequest(
            id=turn.id,
            fingerprint=fingerprint,
            object_uuid=turn.object_uuid,
            answer=None,
            lease_until=self._leases.until(),
            expires_at=moment + LIFETIME,
        )
        try:
            with self._database.write() as session:
                rows.drop_expired(session, turn.id, moment)
                session.add(row)
        except IntegrityError:
            return self._again(turn, secrets, fingerprint)
        faults.point("single request begun")
        return turn

    def _again(self, turn: Turn, secrets: Secrets, fingerprint: str) -> Turn | Answered:
        with self._database.write() as session:
            known = rows.by_id(session, turn.id, lock=True)
            if known is None:
                raise _running()
            if known.fingerprint != fingerprint:
                raise KeyReused("this idempotency key was sent with another request before")
            if known.answer is not None:
                return Answered(_decrypted(secrets, known.answer))
            if known.lease_until > now():
                raise _running()
            known.lease_until = self._leases.until()
            return Turn(turn.id, known.object_uuid, is_second=True)

    def anew(self, turn: Turn) -> Turn:
        """The turn with another row id, when an earlier try has made nothing under the first."""
        another = Turn(turn.id, ids.new_uuid())
        with self._database.write() as session:
            rows.change(session, turn.id, object_uuid=another.object_uuid)
        return another

    @contextmanager
    def taken(self, turn: Turn) -> Iterator[None]:
        """Hold the turn; after an error that has made nothing for sure the key is free again.

        After any other the next try, which must be the same, finds out what there is.
        """
        try:
            with self._leases.held([turn.id]):
                yield
        except BaseException as error:
            is_certain = isinstance(error, GatewayError) and error.status < 500
            with suppress(DatabaseUnavailable), self._database.write() as session:
                if is_certain and not turn.is_second:
                    rows.drop(session, turn.id)
                else:
                    rows.change(session, turn.id, lease_until=now())
            raise

    def keep(self, turn: Turn, secrets: Secrets, answer: Mapping[str, Any]) -> None:
        """Remember the answer. When that fails, the next try finds what was made."""
        try:
            with self._database.write() as session:
                rows.change(session, turn.id, answer=_encrypted(secrets, answer))
        except DatabaseUnavailable as error:
            log.warning("an answer is not kept", extra={"error": error.message})
        faults.point("single request answered")

    def sweep(self) -> None:
        """Forget requests whose day is over."""
        with self._database.write() as session:
            rows.drop_all_expired(session, now())


def _running() -> Conflict:
    return Conflict(
        "a request with this idempotency key is running",
        code="idempotency_in_progress",
        headers={"Retry-After": "2", "x-should-retry": "true"},
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _cipher(secrets: Secrets) -> Any:
    # Few requests need it, and it takes 7 MB of a process.
    from cryptography.fernet import Fernet  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

    secret = f"{secrets.caller}\0{secrets.key}".encode("utf-8", "surrogatepass")
    key = HKDF(SHA256(), 32, salt=None, info=b"manifold: kept answer").derive(secret)
    return Fernet(base64.urlsafe_b64encode(key))


def _encrypted(secrets: Secrets, answer: Mapping[str, Any]) -> str:
    sealed: bytes = _cipher(secrets).encrypt(json.dumps(answer).encode())
    return sealed.decode()


def _decrypted(secrets: Secrets, sealed: str) -> dict[str, Any]:
    from cryptography.fernet import InvalidToken  # noqa: PLC0415  # as above

    try:
        answer: dict[str, Any] = json.loads(_cipher(secrets).decrypt(sealed.encode()))
    except InvalidToken as error:
        # The key has a new secret since then.
        raise Conflict(
            "the request was done, and its answer can be read with the key's old secret alone",
            code="idempotency_key_used",
        ) from error
    return answer
