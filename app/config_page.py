"""docs/configuration.md, written from the schemas that read config.yaml.

`python -m app.config_page --write docs/configuration.md`; a test holds the page against this.
Names, kinds, bounds and defaults are the code's own; only what a key means is said here, or by the
provider whose key it is.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from marshmallow import Schema, fields, missing, validate

from app import config_schema, litellm_keys
from app.config_schema import AccountEntry, DeploymentParams, Section
from app.providers.protocol import Provider
from app.providers.registry import NOT_YET, PROVIDERS
from app.settings import Deployment, Settings

COMMAND = "python -m app.config_page --write docs/configuration.md"

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "general_settings": {
        "master_key": "the administrator's key; made on the first start and kept in `data_dir`",
        "previous_master_keys": "master keys of before, which still work for a while",
        "master_key_overlap_hours": "how long, from the first start with the present key on",
        "metrics_token": "lets Prometheus read `/metrics`, and nothing else",
        "database_url": "`postgresql://user:password@host/name`; else a SQLite file in `data_dir`",
        "data_dir": "database, local store, spool, kept contents, generated master key",
        "default_target_model_names": "where a file goes when a request names nothing",
        "fan_out": "what an upload needs: a copy for every model, or at every account",
        "fan_out_threads": "most uploads and deletes under way at once in one process",
        "max_file_size_mb": "an upload",
        "max_batch_file_size_mb": "an upload with the purpose `batch`",
        "max_batch_file_records": "rows of a batch file",
        "max_batch_row_mb": "one row of a batch file",
        "validate_batch_files": "off: rows go as they are, only their models are checked",
        "max_request_size_mb": "a JSON body, which may also have 100 levels",
        "max_inline_file_size_mb": "the largest file that `local` puts into a chat",
        "allow_unrecorded_ids": "let everybody use encoded and raw ids that have no row here",
        "hide_foreign_objects": "answer 404 instead of 403 for somebody else's file or job",
        "migrate_on_start": "bring the database up to date at start",
        "file_wait_seconds": "how long a request waits for its file to be processed, before 409",
        "lease_seconds": "after so long without a sign of life, another process takes over",
        "keep_content": "keep every upload's content in `data_dir`: downloads come from there, and "
        "copies that a provider lets go of are stored again",
        "renew_ahead_seconds": "how long before its end such a copy is stored again; 0: at its "
        "next use",
        "spool_max_mb": "most content kept for uploads of which a copy is still missing",
        "spool_max_hours": "how long it is kept and the copy tried again",
        "poll_seconds": "first pause between two looks at an unfinished batch or job; it grows",
        "poll_max_seconds": "longest pause between two looks",
        "give_up_days": "after this, one that cannot be asked for counts as `lost`",
        "auto_register_fine_tuned": "let a job's owner call the model it made",
        "task_queue_url": "`redis://` or `postgresql://`, when workers run on several machines; "
        "else a SQLite file in `data_dir`",
        "audit_retention_days": "how long the audit trail keeps a row",
        "accel_redirect": "where nginx finds what lies on this disk, to send it by itself",
        "database_pool_size": "most connections of one process",
    },
    "router_settings": {
        "routing_strategy": "which of several accounts is asked: by weight, or the one with the "
        "fewest requests; LiteLLM's others mean the first, with a warning",
        "cooldown_time": "seconds that a failing account rests",
    },
    "model_list": {
        "model_name": "what clients call it; several entries of one name are several accounts. "
        "`openai/*` with the model `openai/*` stands for all of a provider's",
        "litellm_params": "how to reach it, below",
        "model_info": "what is known about it, below",
    },
    "litellm_params": {
        "model": "`<provider>/<model>` as the provider calls it; a bare name is OpenAI's",
        "custom_llm_provider": "the provider, where `model` does not begin with it",
        "weight": "its share of the requests, beside other accounts of the same name",
        "timeout": "seconds to an answer's first byte, and to each next one",
        "max_retries": "how often what may be repeated is",
    },
    "model_info": {
        "id": "the deployment's id, by which its copies of files are known; else a hash of name, "
        "provider, model, address and organisation, so that a new key changes nothing",
        "mode": "shown by `/model/info`",
        "supported_endpoints": "shown by `/model/info`",
    },
    "accounts": {
        "custom_llm_provider": "the provider whose account this is",
        "default": "the account for requests that name nothing",
        "model": "the model that is meant, where the provider needs one",
        "model_info": "as above; `id` is worth setting",
    },
}

ENVIRONMENT: Mapping[str, str] = {
    "MANIFOLD_CONFIG": "the configuration's path, when `--config` is not given (`./config.yaml`)",
    "MANIFOLD_MASTER_KEY": "wins over `master_key`",
    "LITELLM_MASTER_KEY": "the same, after `MANIFOLD_MASTER_KEY`",
    "DATABASE_URL": "wins over `database_url`",
    "WEB_CONCURRENCY": "processes, when the command line says nothing (one a core, to 4)",
    "MANIFOLD_THREADS": "requests that one process serves at a time (64)",
    "MANIFOLD_WORKER_CLASS": "`gthread`, or `gevent` (install with `[gevent]`)",
    "MANIFOLD_LOG_LEVEL": "`INFO`, or any other level of Python's logging",
    "MANIFOLD_URL": "the gateway that the client commands of `manifold` ask",
    "MANIFOLD_API_KEY": "the key with which they ask",
    "FORWARDED_ALLOW_IPS": "addresses and networks of the proxies that may say who the client is "
    "(`127.0.0.1,::1`)",
    "HTTPS_PROXY": "how upstreams are reached; `HTTP_PROXY` and `NO_PROXY` likewise",
    "REQUESTS_CA_BUNDLE": "whom to trust there",
}

_INTRODUCTION = """\
<!-- written by `{command}`; do not edit -->
# Configuration

One file, `config.yaml`: `--config`, else `MANIFOLD_CONFIG`, else in the current directory.
LiteLLM's file works as it is. Any value may be `os.environ/NAME`, the environment variable of that
name; one that is not set is a mistake. Sizes (`_mb`) are in MB of 1024 * 1024 bytes.

All mistakes are told at once when the gateway starts, each with its path and, for a name that
nobody knows, what was probably meant; then nothing is served. A change takes effect with a restart.
"""

_KINDS: tuple[tuple[type[fields.Field[Any]], str], ...] = (
    (config_schema.Whole, "whole number"),
    (fields.Integer, "whole number"),
    (fields.Float, "number"),
    (fields.Boolean, "true or false"),
    (config_schema.Names, "list of names"),
    (config_schema.Secrets, "list"),
    (fields.String, "text"),
    (fields.Raw, ""),
)


def page() -> str:
    """The whole page, in Markdown."""
    known = config_schema
    parts = [
        _INTRODUCTION.format(command=COMMAND),
        "## `model_list`\n\nThe models, and the accounts that serve them. An entry has",
        _of_section(known.ModelEntry, "model_list", {}),
        "`litellm_params` of every provider:",
        _of_section(DeploymentParams, "litellm_params", _defaults_of(Deployment, _RENAMED)),
        "and beside them the provider's own, [below](#parameters-of-the-providers).",
        "`model_info`, of which unknown keys are kept and shown:",
        _of_section(known.ModelInfo, "model_info", {}),
        "## `files_settings`, `finetune_settings`\n\n"
        "The accounts for requests that name a provider (`custom_llm_provider`) and no model.\n"
        "Fine-tuning looks into `finetune_settings` first. An entry has what `litellm_params`\n"
        "has, and",
        _of_section(AccountEntry, "accounts", {"default": False}),
        "## `general_settings`",
        _of_section(known.GeneralSettings, "general_settings", _defaults_of(Settings)),
        "How many connections PostgreSQL must allow: [operations.md](operations.md#connections).",
        "## `router_settings`",
        _of_section(
            known.RouterSettings,
            "router_settings",
            _defaults_of(Settings, {"cooldown_seconds": "cooldown_time"}),
        ),
        "## `environment_variables`\n\n"
        "A mapping of names to texts, for `os.environ/NAME` in this file; the process's own win.",
        "## Parameters of the providers",
        *(_of_provider(cls) for cls in PROVIDERS),
        "Models of "
        + _listed(f"`{name}`" for name in sorted(NOT_YET))
        + ", which LiteLLM has, are "
        "left out with a warning.",
        "## The environment",
        _table(("variable", "what"), ([f"`{name}`", text] for name, text in ENVIRONMENT.items())),
        "## What LiteLLM has and Manifold has no use for",
        "These load with a warning at the start and do nothing; any other unknown key is a\n"
        "mistake. Prices (every key with `cost` in it) are of this kind too.",
        _table(("section", "keys"), _ignored()),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


_RENAMED = {"timeout_seconds": "timeout"}


def _defaults_of(cls: type[Any], renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    names = renamed or {}
    return {names.get(each.name, each.name): each.default for each in dataclass_fields(cls)}


def _of_section(section: type[Section], name: str, defaults: Mapping[str, Any]) -> str:
    shown = section.known()
    if section is AccountEntry:
        shown = {key: shown[key] for key in MEANINGS[name]}
    rows = (
        [f"`{key}`", _kind(field), _default(field, defaults.get(key)), MEANINGS[name][key]]
        for key, field in shown.items()
    )
    return _table(("key", "", "default", "what"), rows)


def _of_provider(cls: type[Provider]) -> str:
    schema: Schema = cls.Params()
    names = _listed(f"`{name}/`" for name in (cls.name, *cls.aliases))
    rows = (
        [f"`{key}`", _kind(field), _default(field, field.load_default), _description(field)]
        for key, field in schema.fields.items()
    )
    # Others live in app/providers; what they are called in docs/ follows from their names.
    link = f"[{cls.name}](providers/{cls.name.replace('_', '-')}.md)"
    return f"### {link}: {names}\n\n" + _table(("key", "", "default", "what"), rows)


def _description(field: fields.Field[Any]) -> str:
    return str(field.metadata["description"])


def _kind(field: fields.Field[Any]) -> str:
    bounds = [text for each in field.validators if (text := _bounds(each))]
    choices = [text for text in bounds if "`" in text]
    kind = next((word for cls, word in _KINDS if isinstance(field, cls)), "")
    return _listed(choices) if choices else ", ".join((kind, *bounds))


def _bounds(check: Any) -> str:
    if isinstance(check, validate.OneOf):
        choices = (each for each in check.choices if each not in litellm_keys.STRATEGIES)
        return " or ".join(f"`{each}`" for each in choices)
    if isinstance(check, validate.Range):
        if check.max is None:
            return f"{check.min} or more" if check.min else ""
        return f"{check.min} to {check.max}"
    return ""


def _default(field: fields.Field[Any], default: Any) -> str:
    if field.required:
        return "required"
    if default in (None, (), missing):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, Path):
        return f"`./{default}`"
    return f"`{default:g}`" if isinstance(default, int | float) else f"`{default}`"


def _ignored() -> Iterable[list[str]]:
    sections: tuple[tuple[str, type[Section]], ...] = (
        ("top level", config_schema.TopLevel),
        ("an entry of `model_list`", config_schema.ModelEntry),
        ("`litellm_params`", DeploymentParams),
        ("`general_settings`", config_schema.GeneralSettings),
        ("`router_settings`", config_schema.RouterSettings),
        ("`litellm_settings`", config_schema.LitellmSettings),
    )
    for name, section in sections:
        yield [name, " ".join(f"`{key}`" for key in sorted(section.ignored))]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(head)
    lines = [titles, ["---"] * len(titles), *(list(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--write":
        raise SystemExit(COMMAND)
    Path(sys.argv[2]).write_text(page())
