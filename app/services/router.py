"""Which deployments serve a model name, and which one takes this request."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from app import signals
from app.errors import (
    AmbiguousRouting,
    ModelAccessDenied,
    RoutingRequired,
    UnknownModel,
    UnknownProvider,
)
from app.providers.protocol import Provider
from app.services.callers import Caller
from app.services.tuned_models import TunedModels
from app.settings import Deployment, Settings

T = TypeVar("T")

Kind = Literal["unified", "encoded", "raw"]

# Names that an id, a row and a request body can hold.
_NAME = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff*,;]{1,255}")


@dataclass(frozen=True)
class Selector:
    """Where a request asks to go. At most one of the three is set, but for inference, where
    `model` beside `provider` is that provider's own model name."""

    model: str | None = None
    target_model_names: tuple[str, ...] = ()
    provider: str | None = None


class Hints:
    """What a request says about where it should go, and from which place of the request.

    Reading them never fails, for they are ignored beside an id that has a row.
    """

    def __init__(self, found: Sequence[tuple[str, str, tuple[str, ...]]] = ()) -> None:
        self._found = tuple(found)

    def first(self, kind: str) -> str | None:
        """The first value of a selector, whatever else the request says."""
        return next((values[0] for _, found, values in self._found if found == kind), None)

    def selector(self, *, inference: bool = False) -> Selector:
        """The one selector of the request. Raises AmbiguousRouting naming two that disagree."""
        by_kind: dict[str, tuple[str, tuple[str, ...]]] = {}
        for place, kind, values in self._found:
            if kind != "target_model_names" and len(values) > 1:
                raise AmbiguousRouting(f"{kind} is {_text(values)} in the {place}", param=kind)
            earlier = by_kind.setdefault(kind, (place, values))
            if set(earlier[1]) != set(values):
                raise AmbiguousRouting(
                    f"{kind} is {_text(earlier[1])} in the {earlier[0]} "
                    f"and {_text(values)} in the {place}",
                    param=kind,
                )
        kinds = sorted(by_kind)
        allowed = inference and kinds == ["custom_llm_provider", "model"]
        if len(kinds) > 1 and not allowed:
            first, second = kinds[0], kinds[1]
            raise AmbiguousRouting(
                f"{first} ({_text(by_kind[first][1])} in the {by_kind[first][0]}) and {second} "
                f"({_text(by_kind[second][1])} in the {by_kind[second][0]}) exclude each other",
                param=second,
            )

        def single(kind: str) -> str | None:
            return by_kind[kind][1][0] if kind in by_kind else None

        return Selector(
            model=single("model"),
            target_model_names=by_kind.get("target_model_names", ("", ()))[1],
            provider=single("custom_llm_provider"),
        )


def _text(values: Sequence[str]) -> str:
    return repr(", ".join(values))[:200]


@dataclass(frozen=True)
class Route:
    """A deployment that can take a request, and what the model is called there."""

    deployment: Deployment
    provider: Provider
    model_name: str | None
    upstream_model: str


@dataclass(frozen=True)
class Way:
    """How files of a request are kept: by which kind of id, for which names, at which routes."""

    kind: Kind
    names: tuple[str, ...]
    routes: tuple[Route, ...]


class Router:
    """The deployments of this process, and how each of them is doing.

    `providers` maps the ids of those deployments that this version serves to their providers.
    """

    def __init__(
        self,
        settings: Settings,
        providers: Mapping[str, Provider],
        *,
        tuned_models: TunedModels | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._tuned_models = tuned_models
        self._deployments = tuple(d for d in settings.deployments if d.id in providers)
        self._accounts = tuple(d for d in settings.file_accounts if d.id in providers)
        self._tuning = tuple(d for d in settings.finetune_accounts if d.id in providers)
        self._models = {d.id: d.model_name for d in self._deployments}
        self._clock = clock
        self._rng = rng or random.Random()
        self._lock = threading.Lock()
        self._rests_until: dict[str, float] = {}
        self._in_flight: Counter[str] = Counter()

    def model_names(self, caller: Caller) -> list[str]:
        """The model names that this caller may use, in the order of the configuration.

        A wildcard is no name; of what it covers, the names on the caller's own list are shown.
        """
        plain = dict.fromkeys(d.model_name for d in self._deployments if not d.is_wildcard)
        listed = (*caller.key_models, *caller.user_models)
        covered = (name for name in listed if any(_covers(d, name) for d in self._deployments))
        names = dict.fromkeys(name for name in (*plain, *covered) if name is not None)
        tuned = self._tuned_models.names(caller.owner) if self._tuned_models else []
        return [
            *(name for name in names if self._is_usable(name, caller)),
            *(name for name, _ in tuned if self._tuned(name, caller)),
        ]

    def routes(self, name: str, caller: Caller) -> tuple[Route, ...]:
        """The deployments behind a model name. Raises UnknownModel, ModelAccessDenied."""
        routes = self._routes(name)
        if not routes and (tuned := self._tuned(name, caller)):
            return tuned
        if not routes:
            raise UnknownModel(
                f"the model {name!r:.200} does not exist; "
                "GET /v1/models lists what this key may use",
                param="model",
            )
        if not self._allowed(name, routes, caller):
            raise ModelAccessDenied(f"this key may not use the model {name!r}", param="model")
        return routes

    def account(self, provider: str) -> Route:
        """The account of `files_settings` for a provider. Raises UnknownProvider."""
        for deployment in sorted(self._accounts, key=lambda d: not d.is_default):
            if deployment.provider == provider:
                return self._route(deployment, None)
        known = ", ".join(sorted({d.provider for d in self._accounts})) or "none"
        raise UnknownProvider(
            f"no provider {provider!r:.200} in files_settings; configured: {known}",
            param="custom_llm_provider",
        )

    def tuning_account(self, provider: str) -> Route:
        """The account of `finetune_settings` for a provider, else that of `files_settings`."""
        return self.tuning_accounts(provider)[0]

    def tuning_accounts(self, provider: str) -> tuple[Route, ...]:
        """The accounts where a provider's fine-tuning jobs may be. Raises UnknownProvider."""
        tuning = [self._route(d, None) for d in self._tuning if d.provider == provider][:1]
        if tuning and all(d.provider != provider for d in self._accounts):
            return (*tuning,)
        return (*tuning, self.account(provider))

    def way(self, selector: Selector, caller: Caller) -> Way:
        """How files that are asked for by this selector are kept; nothing named: the default.

        Raises UnknownModel, UnknownProvider, ModelAccessDenied and RoutingRequired, all before
        anything is sent anywhere.
        """
        if selector.target_model_names:
            return self._managed(selector.target_model_names, caller)
        if selector.model is not None:
            return Way("encoded", (selector.model,), self.routes(selector.model, caller))
        if selector.provider is not None:
            return Way("raw", (), (self.account(selector.provider),))
        if self._settings.default_target_model_names:
            names = self._settings.default_target_model_names
            usable = [name for name in names if self._is_usable(name, caller)]
            return self._managed(usable or names, caller)
        return Way("raw", (), (self._default_account(caller),))

    def by_id(self, deployment_id: str, model_name: str | None = None) -> Route | None:
        """The deployment with this id, None when the configuration has it no more.

        `model_name` says which of the many that a wildcard covers is meant.
        """
        for deployment in (*self._deployments, *self._accounts, *self._tuning):
            if deployment.id == deployment_id:
                name = model_name if deployment.is_wildcard and model_name else None
                return self._route(deployment, name or deployment.model_name)
        return None

    def model_of(self, deployment_id: str) -> str | None:
        """The model name of a deployment as the configuration has it, None for an account."""
        return self._models.get(deployment_id)

    def accounts_of(self, name: str) -> frozenset[str]:
        """The ids of the deployments behind a model name; a fact, whoever may use it."""
        return frozenset(route.deployment.id for route in self._routes(name))

    def order(self, candidates: Sequence[T], deployment_of: Callable[[T], str]) -> list[T]:
        """The candidates in the order in which to try them; those that rest come last."""
        now = self._clock()
        weights = {d.id: d.weight for d in (*self._deployments, *self._accounts)}

        def rank(candidate: T) -> tuple[bool, float, float]:
            key = deployment_of(candidate)
            weight = weights.get(key, 1.0)
            # Sorting by u ** (1/w) is weighted sampling without replacement (Efraimidis, 2006).
            chance = self._rng.random() ** (1 / weight) if weight > 0 else 0.0
            busy = self._in_flight[key] if self._settings.routing_strategy == "least-busy" else 0
            return (self._rests_until.get(key, 0.0) > now, float(busy), -chance)

        return sorted(candidates, key=rank)

    def rest(self, deployment_id: str, seconds: float | None = None) -> None:
        """Try this deployment last for a while: what the upstream asked for, or the setting."""
        pause = self._settings.cooldown_seconds if seconds is None else min(seconds, 300.0)
        signals.tell().rested(deployment_id, pause)
        with self._lock:
            self._rests_until[deployment_id] = self._clock() + pause

    def resting(self) -> list[str]:
        """The ids of the deployments that rest now."""
        now = self._clock()
        with self._lock:
            return sorted(key for key, until in self._rests_until.items() if until > now)

    @contextmanager
    def counted(self, deployment_id: str) -> Iterator[None]:
        """Count a request as in flight at a deployment."""
        self.begin(deployment_id)
        try:
            yield
        finally:
            self.end(deployment_id)

    def begin(self, deployment_id: str) -> None:
        """A request to this deployment is in flight from now on."""
        with self._lock:
            self._in_flight[deployment_id] += 1

    def end(self, deployment_id: str) -> None:
        """A request to this deployment is done."""
        with self._lock:
            self._in_flight[deployment_id] -= 1

    def deployments(self, caller: Caller) -> list[Deployment]:
        """The deployments behind the model names that this caller may use."""
        return [
            d
            for d in self._deployments
            if d.model_name is not None
            and self._allowed(d.model_name, self._routes(d.model_name), caller)
        ]

    def _tuned(self, name: str, caller: Caller) -> tuple[Route, ...]:
        """The account of a model that one of the caller's own jobs made."""
        if self._tuned_models is None:
            return ()
        deployment_id = self._tuned_models.deployment_of(caller.owner, name)
        base = self.by_id(deployment_id) if deployment_id else None
        if base is None:
            return ()
        # Who may use the model that was tuned may use what became of it.
        may_base = base.model_name is not None and caller.may_use(base.model_name)
        if not may_base and not caller.may_use(name, [f"{base.deployment.provider}/{name}"]):
            return ()
        return (replace(base, model_name=name, upstream_model=name),)

    def _managed(self, names: Sequence[str], caller: Caller) -> Way:
        routes: dict[str, Route] = {}
        for name in dict.fromkeys(names):
            routes.update((route.deployment.id, route) for route in self.routes(name, caller))
        return Way("unified", tuple(dict.fromkeys(names)), tuple(routes.values()))

    def _default_account(self, caller: Caller) -> Route:
        accounts = self._accounts
        chosen = next((d for d in accounts if d.is_default), None)
        if chosen is None and len(accounts) == 1:
            chosen = accounts[0]
        chosen = chosen or next((d for d in accounts if d.provider == "openai"), None)
        if chosen is None:
            models = ", ".join(self.model_names(caller))
            providers = ", ".join(dict.fromkeys(d.provider for d in self._accounts))
            raise RoutingRequired(
                "name where this should go: target_model_names or model "
                f"({models or 'none configured'}), "
                f"or custom_llm_provider ({providers or 'none configured'})"
            )
        return self._route(chosen, None)

    def _routes(self, name: str) -> tuple[Route, ...]:
        if not _NAME.fullmatch(name):
            return ()
        exact = [d for d in self._deployments if d.model_name == name]
        exact = exact or [
            d for d in self._deployments if d.qualified_model == name and not d.is_wildcard
        ]
        if exact:
            return tuple(self._route(d, d.model_name) for d in exact)
        covering = [d for d in self._deployments if _covers(d, name)]
        nearest = max((_prefix(d) for d in covering), key=len, default="")
        return tuple(self._route(d, name) for d in covering if _prefix(d) == nearest)

    def _route(self, deployment: Deployment, model_name: str | None) -> Route:
        upstream_model = deployment.upstream_model
        if "*" in upstream_model and model_name is not None:
            rest = model_name.removeprefix(_prefix(deployment))
            upstream_model = upstream_model.replace("*", rest, 1)
        provider = self._providers[deployment.id]
        return Route(deployment, provider, model_name, upstream_model)

    def _is_usable(self, name: str, caller: Caller) -> bool:
        routes = self._routes(name)
        return bool(routes) and self._allowed(name, routes, caller)

    def _allowed(self, name: str, routes: Sequence[Route], caller: Caller) -> bool:
        public = {route.model_name for route in routes if route.model_name} or {name}
        qualified = [f"{r.deployment.provider}/{r.upstream_model}" for r in routes]
        return all(caller.may_use(each, qualified) for each in public)


def _covers(deployment: Deployment, name: str) -> bool:
    """Whether a wildcard deployment serves a name; the star stands for one character or more."""
    prefix = _prefix(deployment)
    is_under = name.startswith(prefix) and len(name) > len(prefix)
    return deployment.is_wildcard and is_under and "*" not in name


def _prefix(deployment: Deployment) -> str:
    return (deployment.model_name or "").partition("*")[0]
