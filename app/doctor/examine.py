"""The whole examination, in the order in which one thing needs another."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from app.doctor import accounts, database, front, machine
from app.doctor.findings import Finding, fault, ok, warning
from app.errors import ConfigError
from app.providers import registry
from app.settings import Settings, load


def examine(
    config: Path,
    environ: Mapping[str, str],
    *,
    url: str | None = None,
    site: Path | None = None,
    port: int = 4000,
) -> Iterator[Finding]:
    """What is found, as it is found. Nothing is changed; providers are asked, nothing is stored.

    `url` is the gateway's address as clients have it, `site` nginx's file for it, `port` the one
    that the gateway itself listens on.
    """
    yield from machine.open_files()
    try:
        settings = load(config, environ, check=registry.mistakes)
    except ConfigError as error:
        for mistake in error.mistakes:
            yield fault(
                "configuration",
                mistake if mistake.startswith(str(config)) else f"{config}: {mistake}",
                "the gateway does not start",
                _cure(mistake),
            )
        return
    yield from _warnings(settings, config)
    yield from machine.master_key(settings)
    yield from machine.disk(settings)
    yield from database.look(settings, environ)
    yield from database.queue(settings)
    yield from accounts.look(settings)
    yield from front.nginx(settings, site, port)
    if url is not None:
        yield from front.address(settings, url)


def _warnings(settings: Settings, config: Path) -> Iterator[Finding]:
    for text in settings.warnings:
        yield warning(
            "configuration",
            f"{config}: {text}",
            "it does not do what it seems to say",
            "take it out, or write what it should be",
        )
    if not settings.warnings:
        count = len(settings.deployments)
        yield ok("configuration", f"{config}: {count} deployment{'' if count == 1 else 's'}")


def _cure(mistake: str) -> str:
    if "environment variable" in mistake:
        return (
            "set the variable where the gateway is started (Environment= or EnvironmentFile= in "
            "the systemd unit, environment: in compose)"
        )
    if "no such file" in mistake.lower():
        return "name the file with --config or MANIFOLD_CONFIG"
    return "mend this line of the file; docs/configuration.md has every setting"
