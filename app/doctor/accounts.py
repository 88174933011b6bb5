"""The provider accounts: the way to each, its clock, and whether the credential is taken."""

import datetime as dt
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from urllib.parse import urlsplit

import requests

from app.doctor.findings import Finding, fault, ok, warning
from app.errors import (
    ConfigError,
    GatewayError,
    NotFound,
    NotSupported,
    UpstreamAuthFailed,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.providers.protocol import Place, Provider
from app.providers.registry import open_all
from app.settings import Deployment, Settings

_SECONDS = 8.0
_AT_ONCE = 8
_PASSING = (408, 429)
_SKEW_SECONDS, _WRONG_SECONDS = 30.0, 300.0


def look(settings: Settings) -> Iterator[Finding]:
    """Every account, some at a time, and then every model that is left without one."""
    named = [*_named(settings)]
    short = {
        key: replace(deployment, max_retries=0, timeout_seconds=_SECONDS)
        for key, deployment in named
    }
    try:
        providers = open_all(
            tuple(short.values()), settings.file_accounts, Place(settings.data_dir)
        )
    except ConfigError as error:
        for mistake in error.mistakes:
            yield fault("accounts", mistake, "the gateway does not start", "mend config.yaml")
        return
    addresses = {
        address: key
        for key, deployment in short.items()
        if deployment.id in providers
        for address in providers[deployment.id].addresses
    }
    origins = {_origin(address): address for address in addresses}
    broken: dict[str, str] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for origin, found in zip(origins, pool.map(_way, origins.values()), strict=True):
            for finding in found:
                if finding.level == "fault" and finding.check == "reachability":
                    broken[origin] = finding.what
                yield finding
        asked = [
            (key, deployment, providers[deployment.id])
            for key, deployment in short.items()
            if deployment.id in providers
        ]
        verdicts = list(pool.map(partial(_credential, broken), asked))
    dead: set[str] = set()
    for (_, deployment, _), finding in zip(asked, verdicts, strict=True):
        yield finding
        if finding.level == "fault":
            dead.add(deployment.id)
    yield from _models(
        settings.deployments, dead, {d.id for d in short.values() if d.id in providers}
    )


def _named(settings: Settings) -> Iterator[tuple[str, Deployment]]:
    for section, deployments in (
        ("model_list", settings.deployments),
        ("files_settings", settings.file_accounts),
        ("finetune_settings", settings.finetune_accounts),
    ):
        for at, deployment in enumerate(deployments):
            yield f"{section}.{at}", deployment


def _origin(address: str) -> str:
    parts = urlsplit(address)
    # Whatever stands before an @ is nobody's business.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _way(address: str) -> list[Finding]:
    """DNS, TCP, TLS and the clock of one host."""
    origin, check = _origin(address), "reachability"
    proxy = requests.utils.select_proxy(origin, requests.utils.get_environ_proxies(origin))
    via = f" by the proxy {_origin(proxy)}" if proxy else ""
    why = "its accounts cannot be used"
    parts = urlsplit(proxy or address)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            pass
    except socket.gaierror:
        cure = "mend api_base, or the name service of this machine (/etc/resolv.conf)"
        return [fault(check, f"{origin}{via}: there is no host {host!r}", why, cure)]
    except OSError as error:
        told = error.strerror or (
            "no answer in time" if isinstance(error, TimeoutError) else str(error)
        )
        cure = (
            "start the server there, mend api_base, or let the firewall pass; a proxy is named by "
            "HTTPS_PROXY and NO_PROXY"
        )
        return [fault(check, f"{origin}{via}: {told.lower()} at {host}:{port}", why, cure)]
    begun = time.time()
    try:
        # Without a credential: any answer will do.
        answer = requests.get(origin, timeout=_SECONDS, allow_redirects=False, stream=True)
        answer.close()
    except requests.exceptions.SSLError as error:
        cure = (
            "name the authority's certificate in REQUESTS_CA_BUNDLE, or look who stands in "
            "between; a wrong clock of this machine looks the same"
        )
        return [fault(check, f"{origin}{via}: TLS: {_short(error)}", why, cure)]
    except requests.RequestException as error:
        cure = "look at the server, or at the proxy, there"
        return [fault(check, f"{origin}{via}: {_short(error)}", why, cure)]
    return [ok(check, f"{origin}{via}"), *_clock(origin, answer, (begun + time.time()) / 2)]


def _clock(origin: str, answer: requests.Response, here: float) -> list[Finding]:
    try:
        there = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return []
    skew = here - there
    if abs(skew) <= _SKEW_SECONDS:
        return [ok("clock", f"as that of {origin}")]
    level = fault if abs(skew) > _WRONG_SECONDS else warning
    amount = dt.timedelta(seconds=round(abs(skew)))
    return [
        level(
            "clock",
            f"it is {amount} {'before' if skew > 0 else 'behind'} that of {origin}",
            "tokens and certificates count as not yet or no longer valid, keys end at the wrong "
            "time, and lost uploads are not found again",
            "let this machine follow a time server: `timedatectl set-ntp true`, or chrony",
        )
    ]


def _credential(broken: Mapping[str, str], asked: tuple[str, Deployment, Provider]) -> Finding:
    """Whether an account takes its credential."""
    key, deployment, provider = asked
    name = deployment.model_name or deployment.provider
    where = f"{key} ({name})"
    if not provider.addresses:
        return ok("credentials", f"{where}: on this machine, needs none")
    unreached = [broken[_origin(at)] for at in provider.addresses if _origin(at) in broken]
    if unreached:
        level, told, cure = fault, f"not asked; {unreached[0]}", "see reachability"
    else:
        try:
            provider.check_access()
        except (NotFound, NotSupported):
            # It knows who asks, and has no such thing.
            return ok("credentials", f"{where}: taken")
        except GatewayError as error:
            level, told, cure = _refused(key, error)
        else:
            return ok("credentials", f"{where}: taken")
    why = f"{name} cannot be used by this account"
    return level("credentials", f"{where}: {told}", why, cure)


def _refused(key: str, error: GatewayError) -> tuple[Callable[..., Finding], str, str]:
    """How bad a refusal is, what it says, and what to do about it."""
    match error:
        case UpstreamAuthFailed():
            cure = (
                f"put a key that works into {key}, or into the environment variable that it names; "
                "organization, project and api_base must belong to the key"
            )
            return fault, error.message, cure
        case UpstreamTimeout():
            cure = "try again; if it stays so, look at the provider's status page"
            return warning, error.message, cure
        case UpstreamRejected():
            cure = f"look at {key}: api_base, api_version, project and region must fit together"
            level = warning if error.status in _PASSING or error.status >= 500 else fault
            return level, f"{error.status}: {error.message}", cure
    return fault, error.message, f"look at {key}, and at the server there"


def _models(
    deployments: Sequence[Deployment], dead: set[str], served: set[str]
) -> Iterator[Finding]:
    for name in dict.fromkeys(d.model_name for d in deployments if d.model_name):
        behind = [d for d in deployments if d.model_name == name and d.id in served]
        if behind and all(d.id in dead for d in behind):
            yield fault(
                "models",
                f"{name}: none of its {len(behind)} accounts works",
                "every upload to it and every request for it fails",
                "mend one of them; see above",
            )


def _short(error: Exception) -> str:
    text = str(error)
    for mark in ("certificate verify failed: ", "[SSL: "):
        if mark in text:
            return text.partition(mark)[2].partition(" (")[0].strip(")'\"] ")
    return type(error).__name__
