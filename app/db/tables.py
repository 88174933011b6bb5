"""Declarative tables and the constraint naming convention."""

import datetime as dt
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column

HEAD = "0008"
"""The newest migration; a test holds it against the migrations folder."""


class UtcDateTime(TypeDecorator[dt.datetime]):
    """An aware UTC timestamp on every database; SQLite alone would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> Any:
        return None if value is None else value.astimezone(dt.UTC)

    def bind_processor(self, dialect: Dialect) -> Any:
        """As SQLAlchemy's for SQLite, in one call instead of five: an upload binds 17 of these."""
        return _as_text if dialect.name == "sqlite" else super().bind_processor(dialect)

    def process_result_value(self, value: Any, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        aware: dt.datetime = value if value.tzinfo else value.replace(tzinfo=dt.UTC)
        return aware.astimezone(dt.UTC)


_UTC_LENGTH = len("2026-11-21 12:34:56.789012")


def _as_text(value: dt.datetime | None) -> str | None:
    if value is None:
        return None
    if value.tzinfo is not dt.UTC:
        value = value.astimezone(dt.UTC)
    return value.isoformat(" ", "microseconds")[:_UTC_LENGTH]


def now() -> dt.datetime:
    """The present moment, aware, in UTC."""
    return dt.datetime.now(dt.UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        dt.datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class Limited:
    """The columns of what is limited; None means that it is not. `max_bytes_stored` is in bytes."""

    rpm_limit: Mapped[int | None]
    upload_rpm_limit: Mapped[int | None]
    max_parallel_requests: Mapped[int | None]
    max_files: Mapped[int | None]
    max_bytes_stored: Mapped[int | None] = mapped_column(BigInteger)


LIMITS = tuple(Limited.__annotations__)
"""The names of these columns."""


class User(Limited, Base):
    """Somebody who owns keys and files.

    `id_folded` and `email_folded` are the id and the e-mail case-folded (at most three times as
    long): neither exists twice, in whatever letter case.
    """

    __tablename__ = "users"
    __table_args__ = (Index("ix_users_created", "created_at", "user_id"),)

    user_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    id_folded: Mapped[str] = mapped_column(String(765), unique=True)
    email: Mapped[str | None] = mapped_column(String(320))
    email_folded: Mapped[str | None] = mapped_column(String(960), unique=True)
    alias: Mapped[str | None] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(32))
    models: Mapped[list[str]]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    blocked: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class Key(Limited, Base):
    """A bearer token, stored as its SHA-256. `owner` stays the same when the secret is renewed.

    `previous_token` is the hash of the secret before the last regeneration, good until
    `previous_expires_at`. `alias_scope` is the user's id, or "" for keys without a user, so that
    an alias is unique for its owner; the alias comes first in that index, because it is also looked
    up without a scope.
    """

    __tablename__ = "keys"
    __table_args__ = (
        UniqueConstraint("alias", "alias_scope"),
        Index("ix_keys_created", "created_at", "id"),
        Index("ix_keys_user_created", "user_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    token: Mapped[str] = mapped_column(String(64), unique=True)
    previous_token: Mapped[str | None] = mapped_column(String(64), index=True)
    previous_expires_at: Mapped[dt.datetime | None]
    key_name: Mapped[str] = mapped_column(String(32))
    alias: Mapped[str | None] = mapped_column(String(255))
    alias_scope: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.user_id", ondelete="CASCADE"))
    owner: Mapped[str] = mapped_column(String(300))
    models: Mapped[list[str]]
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    blocked: Mapped[bool] = mapped_column(Boolean)
    expires_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]
    created_by: Mapped[str] = mapped_column(String(300))


class File(Base):
    """A file that was uploaded through the gateway, whatever id its owner was given.

    `kind`: unified, encoded or raw. `state`: uploading (nobody sees it), ready, failed (being taken
    back), deleting (unusable, copies remain) or deleted (a tombstone, so that a cursor that names
    it still works). `status` is OpenAI's, derived from the copies whenever one of them changes.
    `expires_at` is when the caller's file ends, `copies_expire_at` when the last of its copies
    does, None while one has no end. `is_kept`: the content is in the local store too. `key_id` is
    the key that it was uploaded with, None for the master key and for what an upstream made.
    """

    __tablename__ = "files"
    __table_args__ = (
        Index("ix_files_owner_created", "owner", "created_at", "id"),
        Index("ix_files_created", "created_at", "id"),
        Index("ix_files_state_updated", "state", "updated_at"),
        Index("ix_files_expires_at", "expires_at"),
        Index("ix_files_key_id", "key_id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    public_id: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(300))
    filename: Mapped[str] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    target_model_names: Mapped[list[str]]
    state: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[dt.datetime | None]
    copies_expire_at: Mapped[dt.datetime | None]
    is_kept: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    key_id: Mapped[str | None] = mapped_column(String(36))
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class Copy(Base):
    """A file at one deployment. The row is committed before the first byte goes upstream.

    `state`: intended (on its way, or its answer was lost), stored (the upstream is still at work
    on it), ready, missing (no copy there), expired, or deleting. `deployment_file_id` is what the
    upstream calls it, committed as soon as it is known; `first_file_id` what it called the copy
    whose id was handed out, once a renewal has put another in its place. `upload_key` names the
    latest attempt to store it, `upstream_model` the provider's model that it is for, `sent_bytes`
    how many bytes were sent, which of a batch file are others than the owner's.
    `next_look_at` is when something is to be done about it, None when nothing is; whoever does it
    holds `lease_until`.
    """

    __tablename__ = "copies"
    __table_args__ = (
        UniqueConstraint("file_id", "deployment_id"),
        Index("ix_copies_deployment_file_id", "deployment_file_id"),
        Index("ix_copies_model_name", "model_name", "file_id"),
        Index("ix_copies_state", "state"),
        Index("ix_copies_first_file_id", "first_file_id"),
        Index("ix_copies_next_look_at", "next_look_at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    file_id: Mapped[str] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    model_name: Mapped[str | None] = mapped_column(String(255))
    deployment_id: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str] = mapped_column(String(64))
    deployment_file_id: Mapped[str | None] = mapped_column(Text)
    first_file_id: Mapped[str | None] = mapped_column(Text)
    upstream_model: Mapped[str | None] = mapped_column(String(255))
    upload_key: Mapped[str | None] = mapped_column(String(32))
    sent_bytes: Mapped[int | None] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    last_error: Mapped[str | None] = mapped_column(Text)
    expires_at: Mapped[dt.datetime | None]
    next_look_at: Mapped[dt.datetime | None]
    lease_until: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class Job(Base):
    """A batch or a fine-tuning job. The row is committed before the upstream is asked.

    `type`: batch or fine_tuning; `kind`: unified, encoded or raw, as for files. `state`: intended
    (asked for, the answer is not known), active, final (the upstream will change it no more), lost
    (given up on) or void (nothing was started). `upstream_id` is what the upstream called it.
    `request` is what the caller sent, `snapshot` the upstream's last word, with its own ids.
    A worker that looks at it holds `lease_until`.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("deployment_id", "type", "upstream_id"),
        Index("ix_jobs_owner_created", "owner", "type", "created_at", "id"),
        Index("ix_jobs_upstream_id", "upstream_id"),
        Index("ix_jobs_due", "state", "next_look_at"),
        Index("ix_jobs_input", "input_uuid", "state"),
        Index("ix_jobs_validation", "validation_uuid", "state"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    type: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(16))
    public_id: Mapped[str | None] = mapped_column(Text)
    owner: Mapped[str] = mapped_column(String(300))
    model_name: Mapped[str | None] = mapped_column(String(255))
    deployment_id: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str] = mapped_column(String(64))
    upstream_id: Mapped[str | None] = mapped_column(String(512))
    upstream_input_id: Mapped[str] = mapped_column(Text)
    input_uuid: Mapped[str | None] = mapped_column(String(36))
    validation_uuid: Mapped[str | None] = mapped_column(String(36))
    request: Mapped[dict[str, Any]]
    snapshot: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    looks: Mapped[int]
    next_look_at: Mapped[dt.datetime]
    lease_until: Mapped[dt.datetime | None]
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class TunedModel(Base):
    """A model that a fine-tuning job made, as a deployment of the job's owner alone."""

    __tablename__ = "tuned_models"
    __table_args__ = (UniqueConstraint("owner", "model_name"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    owner: Mapped[str] = mapped_column(String(300))
    model_name: Mapped[str] = mapped_column(String(255))
    deployment_id: Mapped[str] = mapped_column(String(255))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[dt.datetime]


class UploadSession(Base):
    """A large file that is sent in parts, OpenAI's Upload; its parts are on the gateway's disk.

    `status`: pending, completing (one call makes the file of it), completed, cancelled or expired.
    A pending one is over at `expires_at` whether or not that was written down. `selector` is where
    the file will go: one name of the contract's section 3, with its value. `part_ids` is set when
    the completing begins, and `file_id` to the row id of the file that is being made; when it is
    done, that is the id which was handed out.
    """

    __tablename__ = "uploads"
    __table_args__ = (
        Index("ix_uploads_status_expires", "status", "expires_at"),
        Index("ix_uploads_owner", "owner", "status"),
        Index("ix_uploads_key_id", "key_id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(300))
    filename: Mapped[str] = mapped_column(Text)
    mime_type: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    file_expires_after_seconds: Mapped[int | None]
    selector: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(String(16))
    part_ids: Mapped[list[str]]
    file_id: Mapped[str | None] = mapped_column(Text)
    key_id: Mapped[str | None] = mapped_column(String(36))
    expires_at: Mapped[dt.datetime]
    created_at: Mapped[dt.datetime]
    updated_at: Mapped[dt.datetime]


class UploadPart(Base):
    """A part of an upload; its bytes are a file of the same name in the upload's folder."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index("ix_upload_parts_content", "upload_id", "sha256", "bytes"),)

    id: Mapped[str] = mapped_column(String(37), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[dt.datetime]


class AuditEntry(Base):
    """What somebody did, or was refused. A row is never changed; a sweep removes it in the end.

    `actor` is the user's id, None for a key without user; `key` the beginning of the hash of the
    secret; `target` the public id of the object. `fields` are names, never values. `status` is
    HTTP's: 202 for what was about to be asked of a provider, then how it ended.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_at", "at", "id"),
        Index("ix_audit_actor_at", "actor", "at"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    at: Mapped[dt.datetime]
    actor: Mapped[str | None] = mapped_column(String(255))
    role: Mapped[str] = mapped_column(String(32))
    key: Mapped[str | None] = mapped_column(String(12))
    address: Mapped[str | None] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(32))
    target: Mapped[str | None] = mapped_column(Text)
    status: Mapped[int]
    request_id: Mapped[str | None] = mapped_column(String(128))
    fields: Mapped[list[str]]
    bytes: Mapped[int | None] = mapped_column(BigInteger)


class AuditSweep(Base):
    """What the triggers on the audit trail let go: rows from before this moment.

    Its row lives for one transaction, that of the sweep.
    """

    __tablename__ = "audit_sweeps"

    before: Mapped[dt.datetime] = mapped_column(primary_key=True)


class RequestCount(Base):
    """How many requests of a kind a key or a user has begun in the minute from `began_at` on.

    `subject` is `key:<row id>` or `user:<user id>`; `kind` is any or upload.
    """

    __tablename__ = "request_counts"
    __table_args__ = (Index("ix_request_counts_began_at", "began_at"),)

    subject: Mapped[str] = mapped_column(String(300), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    began_at: Mapped[dt.datetime]
    count: Mapped[int]


class RunningRequest(Base):
    """A request that is being answered, for those who may have so many at once and no more.

    One whose process died counts until `lease_until`.
    """

    __tablename__ = "running_requests"
    __table_args__ = (
        Index("ix_running_requests_subject", "subject", "lease_until"),
        Index("ix_running_requests_lease_until", "lease_until"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    subject: Mapped[str] = mapped_column(String(300), primary_key=True)
    lease_until: Mapped[dt.datetime]


class SingleRequest(Base):
    """A request that its client may send again and that is done once.

    `id` is the SHA-256 of who sent it and of its idempotency key; `fingerprint` that of what it
    asks for. `object_uuid` is the row id of what it makes. `answer` is encrypted with a key that
    is stored nowhere, None while it runs; one whose process died runs until `lease_until`.
    """

    __tablename__ = "single_requests"
    __table_args__ = (Index("ix_single_requests_expires_at", "expires_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    object_uuid: Mapped[str] = mapped_column(String(36))
    answer: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime]


class ConsoleSession(Base):
    """Somebody who is signed in to the console.

    `id` is the SHA-256 of the random token in his cookie. `key_hash` is that of the secret that he
    signed in with: the session is worth what that secret is worth at each request. It is None for a
    master key, which somebody may have chosen short enough to be found from a hash: `master_mac`
    ties the session to it, and can be checked with the token only. `seen_at` is at most a minute
    old while he is at work; `expires_at` is the end, whatever he does.
    """

    __tablename__ = "console_sessions"
    __table_args__ = (Index("ix_console_sessions_expires_at", "expires_at"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_hash: Mapped[str | None] = mapped_column(String(64), index=True)
    master_mac: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[dt.datetime]
    seen_at: Mapped[dt.datetime]
    expires_at: Mapped[dt.datetime]


class UsageHour(Base):
    """What an owner did in an hour, in all and by model and deployment.

    `dimension` is empty (`name` too), model or deployment; names are those of the configuration. A
    request to two models counts once in all and once for each of them. `rows_done` and
    `rows_failed` are those of batches that ended in this hour. `bytes_in` and `bytes_out` are
    bodies as clients sent and got them.
    """

    __tablename__ = "usage_hours"
    __table_args__ = (Index("ix_usage_hours_owner", "owner", "hour"),)

    hour: Mapped[dt.datetime] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(300), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    requests: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    rows_done: Mapped[int] = mapped_column(BigInteger)
    rows_failed: Mapped[int] = mapped_column(BigInteger)


class KeyUse(Base):
    """When a key was used last, to a minute."""

    __tablename__ = "key_uses"

    key_id: Mapped[str] = mapped_column(ForeignKey("keys.id", ondelete="CASCADE"), primary_key=True)
    used_at: Mapped[dt.datetime]


# Made whole here, by one thread: objects are also made without the session that would see to it.
configure_mappers()
