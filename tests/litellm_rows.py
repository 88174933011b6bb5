"""LiteLLM's tables in PostgreSQL as its migrations make them, and rows as its proxy writes them.

Types and defaults are those that Prisma makes of schema.prisma of version 1.109; files and objects
are written as enterprise/.../managed_files.py does, ids as litellm/types/utils.py spells them.
"""

import base64
import datetime as dt
import hashlib
import json
import uuid
from typing import Any

from sqlalchemy import Engine, create_engine, make_url, text

TABLES = {
    "LiteLLM_BudgetTable": """
        budget_id text primary key, max_budget double precision, soft_budget double precision,
        max_parallel_requests integer, tpm_limit bigint, rpm_limit bigint, model_max_budget jsonb,
        budget_duration text, budget_reset_at timestamp(3), created_at timestamp(3) not null
        default current_timestamp, created_by text not null default 'default_user_id',
        updated_at timestamp(3) not null default current_timestamp,
        updated_by text not null default 'default_user_id'""",
    "LiteLLM_TeamTable": """
        team_id text primary key, team_alias text, organization_id text, admins text[],
        members text[], members_with_roles jsonb not null default '{}',
        metadata jsonb not null default '{}', max_budget double precision,
        spend double precision not null default 0, models text[], max_parallel_requests integer,
        tpm_limit bigint, rpm_limit bigint, budget_duration text,
        blocked boolean not null default false,
        created_at timestamp(3) not null default current_timestamp,
        updated_at timestamp(3) not null default current_timestamp""",
    "LiteLLM_UserTable": """
        user_id text primary key, user_alias text, team_id text, sso_user_id text unique,
        organization_id text, object_permission_id text, password text, teams text[] default '{}',
        user_role text, max_budget double precision, spend double precision not null default 0,
        user_email text, models text[], metadata jsonb not null default '{}',
        max_parallel_requests integer, tpm_limit bigint, rpm_limit bigint, budget_duration text,
        budget_reset_at timestamp(3), created_at timestamp(3) default current_timestamp,
        updated_at timestamp(3) default current_timestamp""",
    "LiteLLM_VerificationToken": """
        token text primary key, key_name text, key_alias text,
        soft_budget_cooldown boolean not null default false,
        spend double precision not null default 0, expires timestamp(3), models text[],
        aliases jsonb not null default '{}', config jsonb not null default '{}', user_id text,
        team_id text, permissions jsonb not null default '{}', max_parallel_requests integer,
        metadata jsonb not null default '{}', blocked boolean, tpm_limit bigint, rpm_limit bigint,
        max_budget double precision, budget_duration text, budget_reset_at timestamp(3),
        allowed_cache_controls text[] default '{}', allowed_routes text[] default '{}',
        budget_id text, organization_id text, object_permission_id text,
        created_at timestamp(3) default current_timestamp, created_by text,
        updated_at timestamp(3) default current_timestamp, updated_by text,
        last_active timestamp(3), rotation_count integer default 0""",
    "LiteLLM_DeprecatedVerificationToken": """
        id text primary key, token text not null unique, active_token_id text not null,
        revoke_at timestamp(3) not null,
        created_at timestamp(3) not null default current_timestamp""",
    "LiteLLM_ManagedFileTable": """
        id text primary key, unified_file_id text not null unique, file_object jsonb,
        model_mappings jsonb not null, flat_model_file_ids text[] default '{}',
        storage_backend text, storage_url text,
        created_at timestamp(3) not null default current_timestamp, created_by text, team_id text,
        updated_at timestamp(3) not null default current_timestamp, updated_by text""",
    "LiteLLM_ManagedObjectTable": """
        id text primary key, unified_object_id text not null unique,
        model_object_id text not null unique, file_object jsonb not null,
        file_purpose text not null, status text, batch_processed boolean not null default false,
        created_at timestamp(3) not null default current_timestamp, created_by text, team_id text,
        updated_at timestamp(3) not null default current_timestamp, updated_by text""",
}


def encoded(plain: str) -> str:
    """The base64 that LiteLLM's ids are written in."""
    return base64.urlsafe_b64encode(plain.encode()).decode().rstrip("=")


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class LiteLLM:
    """LiteLLM's database at a URL, with a method for each thing that its proxy would write."""

    def __init__(self, url: str) -> None:
        self.url = url
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        self._engine: Engine = create_engine(parsed)
        with self._engine.begin() as connection:
            for name, columns in TABLES.items():
                connection.execute(text(f'CREATE TABLE "{name}" ({columns.strip()})'))

    def close(self) -> None:
        self._engine.dispose()

    def add(self, table: str, **values: Any) -> None:
        """One row; objects and lists of objects as JSON."""
        names = ", ".join(f'"{name}"' for name in values)
        marks = ", ".join(
            f"CAST(:{name} AS jsonb)" if isinstance(value, dict) else f":{name}"
            for name, value in values.items()
        )
        given = {
            name: json.dumps(value) if isinstance(value, dict) else value
            for name, value in values.items()
        }
        with self._engine.begin() as connection:
            connection.execute(text(f'INSERT INTO "{table}" ({names}) VALUES ({marks})'), given)

    def change(self, statement: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(text(statement))

    def user(self, user_id: str, **more: Any) -> None:
        """A row of /user/new."""
        values: dict[str, Any] = {"user_role": "internal_user", "models": [], **more}
        self.add("LiteLLM_UserTable", user_id=user_id, **values)

    def key(self, secret: str, **more: Any) -> str:
        """A row of /key/generate; its hash."""
        token = sha256(secret)
        name = f"sk-...{secret[-4:]}"
        values = {"token": token, "key_name": name, "models": [], **more}
        self.add("LiteLLM_VerificationToken", created_by="default_user_id", **values)
        return token

    def file(
        self,
        at: dict[str, str],
        names: list[str],
        told: dict[str, Any] | None,
        unified_id: str | None = None,
        **owner: Any,
    ) -> str:
        """A row of an upload with target_model_names; `at` is the provider's id by model_id."""
        (model_id, raw), *_ = (*at.items(), ("", ""))
        if unified_id is None:
            unified_id = encoded(
                f"litellm_proxy:application/octet-stream;unified_id,{uuid.uuid4()};"
                f"target_model_names,{','.join(names)};llm_output_file_id,{raw};"
                f"llm_output_file_model_id,{model_id}"
            )
        self.add(
            "LiteLLM_ManagedFileTable",
            id=str(uuid.uuid4()),
            unified_file_id=unified_id,
            file_object=None if told is None else {**told, "id": unified_id},
            model_mappings=at,
            flat_model_file_ids=list(at.values()),
            updated_at=dt.datetime.now(dt.UTC).replace(tzinfo=None),
            **owner,
        )
        return unified_id

    def batch(self, model_id: str, told: dict[str, Any], **owner: Any) -> str:
        """A row of a batch over managed files."""
        unified_id = encoded(f"litellm_proxy;model_id:{model_id};llm_batch_id:{told['id']}")
        self.object("batch", unified_id, told["id"], {**told, "id": unified_id}, **owner)
        return unified_id

    def object(
        self, purpose: str, unified_id: str, raw: str, told: dict[str, Any], **owner: Any
    ) -> None:
        self.add(
            "LiteLLM_ManagedObjectTable",
            id=str(uuid.uuid4()),
            unified_object_id=unified_id,
            model_object_id=raw,
            file_object=told,
            file_purpose=purpose,
            status=told.get("status"),
            **owner,
        )
