"""config.yaml -> frozen Settings and Deployment values, all mistakes reported at once."""

import datetime as dt
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from app import litellm_keys
from app.config_reading import Reading
from app.config_schema import (
    AccountEntry,
    DeploymentParams,
    GeneralSettings,
    LitellmSettings,
    ModelEntry,
    ModelInfo,
    RouterSettings,
    Section,
    TopLevel,
)
from app.errors import ConfigError


@dataclass(frozen=True)
class Deployment:
    """One account at one upstream: an entry of `model_list`, `files_settings`, `finetune_settings`.

    `id` outlives restarts and new keys. `model_name` is what clients call it, None for an entry
    of `files_settings`. `upstream_model` is what the provider calls it, empty when such an entry
    names no model. `provider` is spelled as in the file. `params` holds the
    provider's own parameters as written (with `os.environ/` resolved); the provider's `Params`
    schema checks them. `timeout_seconds` bounds the wait for an answer's first byte and for each
    next one.
    """

    id: str
    model_name: str | None
    provider: str
    upstream_model: str
    params: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weight: float = 1.0
    timeout_seconds: float = 600.0
    max_retries: int = 2
    is_default: bool = False
    mode: str | None = None
    model_info: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def qualified_model(self) -> str:
        """`<provider>/<upstream model>`, the other name under which clients may ask for it."""
        return f"{self.provider}/{self.upstream_model}"

    @property
    def is_wildcard(self) -> bool:
        """Whether `model_name` is a pattern such as `openai/*`."""
        return self.model_name is not None and "*" in self.model_name


@dataclass(frozen=True)
class RetiringKey:
    """A master key of before, by its SHA-256 in hex, and the moment from which it is refused."""

    sha256: str = field(repr=False)
    until: dt.datetime


@dataclass(frozen=True)
class Settings:
    """Everything that config.yaml and the environment say, checked and resolved.

    Sizes end in `_mb` (1 MB is 1024 * 1024 bytes), durations in `_seconds`. `warnings` are texts
    `<path>: <what>` for the log; they hold no secret. `retiring_master_keys` is what the start has
    made of `previous_master_keys`, and of a rotation of the generated key.
    """

    deployments: tuple[Deployment, ...] = ()
    file_accounts: tuple[Deployment, ...] = ()
    finetune_accounts: tuple[Deployment, ...] = ()
    master_key: str | None = field(default=None, repr=False)
    previous_master_keys: tuple[str, ...] = field(default=(), repr=False)
    master_key_overlap_hours: float = 24.0
    metrics_token: str | None = field(default=None, repr=False)
    retiring_master_keys: tuple[RetiringKey, ...] = ()
    database_url: str | None = field(default=None, repr=False)
    data_dir: Path = Path("data")
    default_target_model_names: tuple[str, ...] = ()
    fan_out: Literal["every_model", "every_deployment"] = "every_model"
    fan_out_threads: int = 64
    max_file_size_mb: int = 512
    max_batch_file_size_mb: int = 200
    max_batch_file_records: int = 50_000
    max_request_size_mb: int = 128
    max_batch_row_mb: int = 16
    validate_batch_files: bool = True
    max_inline_file_size_mb: int = 20
    allow_unrecorded_ids: bool = False
    hide_foreign_objects: bool = False
    migrate_on_start: bool = True
    file_wait_seconds: float = 60.0
    lease_seconds: float = 20.0
    keep_content: bool = False
    renew_ahead_seconds: float = 4 * 3600.0
    spool_max_mb: int = 10_240
    spool_max_hours: float = 72.0
    poll_seconds: float = 5.0
    poll_max_seconds: float = 300.0
    give_up_days: float = 14.0
    auto_register_fine_tuned: bool = False
    task_queue_url: str | None = field(default=None, repr=False)
    audit_retention_days: float = 365.0
    database_pool_size: int = 16
    accel_redirect: str | None = None
    routing_strategy: Literal["simple-shuffle", "least-busy"] = "simple-shuffle"
    cooldown_seconds: float = 5.0
    warnings: tuple[str, ...] = ()

    @property
    def resolved_database_url(self) -> str:
        """The database URL, or the SQLite file in the data directory when none is configured."""
        return self.database_url or f"sqlite:///{(self.data_dir / 'manifold.db').resolve()}"


Check = Callable[[Deployment], Sequence[str]]
"""Mistakes in one deployment, each `litellm_params.<key>: <what>`, or `warning: ` and that."""

# The first that is set wins.
_ENVIRONMENT = (
    ("MANIFOLD_MASTER_KEY", "master_key"),
    ("LITELLM_MASTER_KEY", "master_key"),
    ("DATABASE_URL", "database_url"),
)
_SHORT_MASTER_KEY = 16


def load(path: Path, environ: Mapping[str, str], check: Check = lambda _deployment: ()) -> Settings:
    """The settings that the file at `path` and the environment make together.

    `environ` wins over the file for the master key and the database URL, and over the file's own
    `environment_variables` wherever `os.environ/NAME` is written. `check` knows the providers.
    Raises ConfigError with every mistake there is.
    """
    reading = Reading(environ)
    top = reading.section(TopLevel, reading.document(path), "")
    reading.add_environment(top.get("environment_variables"), "environment_variables")
    general = _general(reading, top.get("general_settings"), environ)
    router = _router(reading, top.get("router_settings"))
    reading.section(LitellmSettings, top.get("litellm_settings"), "litellm_settings")
    book = _Deployments(reading, check)
    settings = Settings(
        deployments=book.models(top.get("model_list")),
        file_accounts=book.accounts(top.get("files_settings"), "files_settings"),
        finetune_accounts=book.accounts(top.get("finetune_settings"), "finetune_settings"),
        **general,
        **router,
    )
    _check_target_names(reading, settings)
    if reading.mistakes:
        raise ConfigError(reading.mistakes)
    return replace(settings, warnings=tuple(reading.warnings))


def is_usable_master_key(key: str) -> bool:
    """Whether an HTTP header can carry the key unchanged."""
    return re.fullmatch(r"[!-~]([ -~]*[!-~])?", key) is not None


def _general(reading: Reading, written: Any, environ: Mapping[str, str]) -> dict[str, Any]:
    origin: dict[str, str] = {}
    for name, key in _ENVIRONMENT:
        if environ.get(name):
            origin.setdefault(key, name)
    if isinstance(written, dict):
        # `master_key: os.environ/LITELLM_MASTER_KEY` is no mistake beside MANIFOLD_MASTER_KEY.
        written = {key: value for key, value in written.items() if key not in origin}
    general = reading.section(GeneralSettings, written, "general_settings")
    for name, key in _ENVIRONMENT:
        # What is left comes from the file's `environment_variables`.
        if key not in general and reading.environ.get(name):
            origin.setdefault(key, name)
    general |= {key: reading.environ[name] for key, name in origin.items()}
    if "data_dir" in general:
        general["data_dir"] = Path(general["data_dir"])
    if "master_key" in general:
        where = origin.get("master_key", "general_settings.master_key")
        _judge_master_key(reading, general["master_key"], where)
    if general.get("master_key") in general.get("previous_master_keys", ()):
        what = "holds the present master key; it names those that are to end"
        reading.mistake("general_settings.previous_master_keys", what)
    return general


def _judge_master_key(reading: Reading, key: str, where: str) -> None:
    if not is_usable_master_key(key):
        reading.mistake(where, "must be printable ASCII without blanks at its ends")
    elif key == "sk-1234":
        reading.warn(where, "sk-1234 stands in every tutorial; choose a key that nobody knows")
    elif len(key) < _SHORT_MASTER_KEY:
        reading.warn(where, f"shorter than {_SHORT_MASTER_KEY} characters; it can be guessed")


def _router(reading: Reading, written: Any) -> dict[str, Any]:
    router = reading.section(RouterSettings, written, "router_settings")
    strategy = router.get("routing_strategy")
    if strategy in litellm_keys.STRATEGIES:
        del router["routing_strategy"]
        what = f"Manifold has no {strategy}; it uses simple-shuffle instead"
        reading.warn("router_settings.routing_strategy", what)
    if "cooldown_time" in router:
        router["cooldown_seconds"] = router.pop("cooldown_time")
    return router


class _Deployments:
    """Makes deployments of entries, and sees to it that no two have the same id."""

    def __init__(self, reading: Reading, check: Check) -> None:
        self._reading = reading
        self._check = check
        self._path_of: dict[str, str] = {}

    def models(self, written: Any) -> tuple[Deployment, ...]:
        """One deployment for each entry of `model_list`."""
        made = []
        for path, value in self._reading.entries(written, "model_list"):
            entry = self._reading.section(ModelEntry, value, path)
            where = f"{path}.litellm_params"
            params = self._reading.section(DeploymentParams, entry.get("litellm_params"), where)
            made.append((path, self._made(DeploymentParams, params, entry, path)))
            _check_model(self._reading, made[-1][1], "model" in params, path)
        made = self._with_ids(made, "")
        for path, deployment in made:
            if deployment.provider and deployment.upstream_model:
                self._ask(deployment, path, "")
        return tuple(deployment for _path, deployment in made)

    def accounts(self, written: Any, section: str) -> tuple[Deployment, ...]:
        """One deployment without a model name for each entry of `section`."""
        made = []
        default = ""
        for path, value in self._reading.entries(written, section):
            entry = self._reading.section(AccountEntry, value, path)
            made.append((path, self._made(AccountEntry, entry, entry, path)))
            if entry.get("default") and default:
                self._reading.mistake(f"{path}.default", f"{default} is the default already")
            elif entry.get("default"):
                default = path
        made = self._with_ids(made, section.removesuffix("_settings") + ":")
        for path, deployment in made:
            if deployment.provider:
                self._ask(deployment, path, "litellm_params.")
        return tuple(deployment for _path, deployment in made)

    def _made(
        self, schema: type[Section], params: dict[str, Any], entry: dict[str, Any], path: str
    ) -> Deployment:
        info = self._reading.section(ModelInfo, entry.get("model_info"), f"{path}.model_info")
        provider, upstream_model = _provider_and_model(params)
        ours = {
            "weight": params.get("weight"),
            "timeout_seconds": params.get("timeout"),
            "max_retries": params.get("max_retries"),
            "is_default": params.get("default"),
        }
        return Deployment(
            id=info.get("id", ""),
            model_name=entry.get("model_name"),
            provider=provider,
            upstream_model=upstream_model,
            params=_own_params(params, schema),
            mode=info.get("mode"),
            model_info=info,
            **{name: value for name, value in ours.items() if value is not None},
        )

    def _with_ids(
        self, made: Sequence[tuple[str, Deployment]], prefix: str
    ) -> list[tuple[str, Deployment]]:
        for path, deployment in made:
            holder = self._path_of.setdefault(deployment.id, path) if deployment.id else path
            if holder != path:
                self._reading.mistake(f"{path}.model_info.id", f"{holder} has this id already")
        return [
            (path, replace(deployment, id=deployment.id or self._new_id(deployment, path, prefix)))
            for path, deployment in made
        ]

    def _new_id(self, deployment: Deployment, path: str, prefix: str) -> str:
        wanted = chosen = prefix + fingerprint(deployment)
        nth = 1
        while chosen in self._path_of:
            nth += 1
            chosen = f"{wanted}-{nth}"
        if nth > 1:
            self._reading.warn(
                f"{path}.model_info.id",
                f"not set, and only credentials tell this entry from {self._path_of[wanted]}: "
                "which of them holds which files depends on their order now; set an id on each",
            )
        self._path_of[chosen] = path
        return chosen

    def _ask(self, deployment: Deployment, path: str, without: str) -> None:
        for text in self._check(deployment):
            found = text.removeprefix("warning: ")
            key, _, what = found.removeprefix(without).partition(": ")
            note = self._reading.mistake if found == text else self._reading.warn
            note(f"{path}.{key}", what)


def _own_params(params: Mapping[str, Any], schema: type[Section]) -> dict[str, Any]:
    """The provider's own keys; LiteLLM also knows `api_base` as `base_url`."""
    own = {key: value for key, value in params.items() if key not in schema.known()}
    if "base_url" in own:
        own.setdefault("api_base", own.pop("base_url"))
    return own


def _provider_and_model(params: Mapping[str, Any]) -> tuple[str, str]:
    model: str = params.get("model", "")
    provider: str = params.get("custom_llm_provider", "")
    if provider:
        return provider, model.removeprefix(f"{provider}/")
    if "/" in model:
        provider, _, model = model.partition("/")
        return provider, model
    # A bare '*' would send every unknown name to OpenAI.
    return "" if model in {"", "*"} else "openai", model


def _check_model(reading: Reading, deployment: Deployment, is_given: bool, path: str) -> None:
    """Whether provider, upstream model and model name go together."""
    where = f"{path}.litellm_params.model"
    upstream, name = deployment.upstream_model, deployment.model_name
    if is_given and not (deployment.provider and upstream):
        reading.mistake(where, "must be '<provider>/<model>', or the bare name of OpenAI's model")
    if any("*" in text[:-1] for text in (upstream, name or "")):
        reading.mistake(path, "'*' may stand only at the end of model_name and model")
    elif name and upstream and deployment.is_wildcard != upstream.endswith("*"):
        reading.mistake(path, "model_name and model must both end in '*', or neither")


def fingerprint(deployment: Deployment) -> str:
    """What stays the same when keys rotate and entries change places, as 32 hex digits."""
    address = str(deployment.params.get("api_base") or "")
    parts = [
        deployment.model_name,
        deployment.provider,
        deployment.upstream_model,
        address.rstrip("/"),
        *(
            deployment.params.get(key)
            for key in ("vertex_project", "vertex_location", "organization", "project")
        ),
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]


def _check_target_names(reading: Reading, settings: Settings) -> None:
    names: set[str] = set()
    prefixes: list[str] = []
    for deployment in settings.deployments:
        if deployment.model_name is None:
            continue
        if deployment.is_wildcard:
            prefixes.append(deployment.model_name.rstrip("*"))
        else:
            names |= {deployment.model_name, deployment.qualified_model}
    for name in settings.default_target_model_names:
        if name not in names and ("*" in name or not name.startswith(tuple(prefixes))):
            path = "general_settings.default_target_model_names"
            reading.mistake(path, f"{name!r} is no model name{_hint(name, names)}")


def _hint(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
