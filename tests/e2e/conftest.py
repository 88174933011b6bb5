"""The processes of the end-to-end tests, once per session or module; their logs on failure."""

import os
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NoReturn

import pytest

from tests.e2e.gateway import RUNNING, Gateway, Upstream, secure_upstream_in

SHOWN_CHARACTERS = 20_000

StartGateway = Callable[..., Gateway]


def missing(what: str) -> NoReturn:
    """Skip this test and say why; where nothing may be missing (in `.ci/run`), fail."""
    if os.environ.get("MANIFOLD_TEST_NO_SKIP"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """The fake upstream; tests make accounts of their own with `upstream.account(...)`."""
    with Upstream(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture(scope="session")
def secure_upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """A fake upstream that speaks TLS; clients must trust `secure_upstream.ca`.

    `start_gateway(..., env={"REQUESTS_CA_BUNDLE": str(secure_upstream.ca)})` makes a gateway do so.
    """
    with secure_upstream_in(tmp_path_factory.mktemp("secure-upstream")) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_leftovers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test begins with an empty memory of requests and leaves no fault behind."""
    names = {"upstream", "secure_upstream"} & set(request.fixturenames)
    used = [request.getfixturevalue(name) for name in names]
    for each in used:
        each.forget_requests()
    yield
    for each in used:
        each.clear_faults()


@pytest.fixture(scope="module")
def start_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartGateway]:
    """`start_gateway(config, workers=2, threads=16, env=None, ...)`: see Gateway for the rest.

    Each call starts another one, with a data directory of its own; all end with the module.
    """
    started: list[Gateway] = []

    def start(config: Mapping[str, Any], **options: Any) -> Gateway:
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), config, **options)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.close_clients()  # Or the server would wait for their idle connections.
        if gateway.running or gateway.worker:
            gateway.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for server in RUNNING:
            if text := server.log_text():
                report.sections.append((f"log of {server.name}", text[-SHOWN_CHARACTERS:]))
    return report
