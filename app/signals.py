"""What happens, told to whoever listens: metrics and traces. Without a listener nothing is done.

Each process has its listeners, set once at its start. What they are told has bounded words only:
routes as templates, deployments and codes as they are configured or declared; never an id or a name
of a user.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
Header = Callable[[str], str | None]

NO_ANSWER = "no answer"
GIVEN_UP = "given up"
"""The gateway itself let go of it: its client has gone, or it was of no use any more."""


@dataclass(frozen=True)
class Answered:
    """A request of a client's that is over. `bytes_in` and `bytes_out` are those of the bodies.

    `route` is the template that matched, None for no route; `method` as the client wrote it.
    """

    route: str | None
    method: str
    status: int
    seconds: float
    bytes_in: int
    bytes_out: int
    is_cut_off: bool = False


class Request:
    """A client's request, from its head on."""

    facts: Mapping[str, str] = {}
    """What its log line is to say besides."""

    def left(self) -> None:
        """Its thread goes on without it; a streamed answer is still on its way."""

    def over(self, answered: Answered) -> None:
        """It is over, with the last byte of its answer."""


class Call:
    """A request to an upstream, from before it is sent on."""

    headers: Mapping[str, str] = {}
    """What it is to carry besides."""

    def over(self, outcome: int | str) -> None:
        """The status of its answer, whose body is still to come, or why there is none."""


class Listener:
    """Does nothing about anything; one that listens overrides what it wants to know of."""

    def begun(self, method: str, header: Header) -> Request:
        """A client's request has begun; `header` gives a header of it by its name."""
        return _NO_REQUEST

    def refused(self, code: str | None) -> None:
        """A client is shown an error, by its code; None: one that an upstream gave."""

    def inferred(self, model: str, operation: str, status: int) -> None:
        """An upstream's answer goes back, for a configured model name."""

    def upstream_call(self, provider: str, deployment: str, method: str) -> Call:
        """A request to an upstream is about to be sent."""
        return _NO_CALL

    def connected(self) -> None:
        """A new connection to an upstream is made."""

    def connections_in_use(self, more: int) -> None:
        """So many more connections to upstreams carry a request."""

    def rested(self, deployment: str, seconds: float) -> None:
        """A deployment is left alone for a while, because it failed."""

    def fanned_out(
        self, calls: Mapping[str, Callable[[], T]]
    ) -> AbstractContextManager[Mapping[str, Callable[[], T]]]:
        """Calls by deployment are about to be made side by side."""
        return nullcontext(calls)

    def carried(self, deployment: str, call: Callable[[], T]) -> Callable[[], T]:
        """A call that another thread will make, on behalf of the request at hand."""
        return call

    def passed(self, seconds: float, *, well: bool) -> None:
        """The worker has looked for what is due."""

    def looked(self, chore: str, *, well: bool) -> None:
        """The worker has looked at one row, or swept."""


_NO_REQUEST = Request()
_NO_CALL = Call()


class _Requests(Request):
    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests
        self.facts = {name: value for r in requests for name, value in r.facts.items()}

    def left(self) -> None:
        for request in self._requests:
            request.left()

    def over(self, answered: Answered) -> None:
        for request in self._requests:
            request.over(answered)


class _Calls(Call):
    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self.headers = {name: value for c in calls for name, value in c.headers.items()}

    def over(self, outcome: int | str) -> None:
        for call in self._calls:
            call.over(outcome)


class Listeners(Listener):
    """Several listeners as one."""

    def __init__(self, listeners: list[Listener]) -> None:
        self._all = tuple(listeners)

    def begun(self, method: str, header: Header) -> Request:
        return _Requests([each.begun(method, header) for each in self._all])

    def refused(self, code: str | None) -> None:
        for each in self._all:
            each.refused(code)

    def inferred(self, model: str, operation: str, status: int) -> None:
        for each in self._all:
            each.inferred(model, operation, status)

    def upstream_call(self, provider: str, deployment: str, method: str) -> Call:
        return _Calls([each.upstream_call(provider, deployment, method) for each in self._all])

    def connected(self) -> None:
        for each in self._all:
            each.connected()

    def connections_in_use(self, more: int) -> None:
        for each in self._all:
            each.connections_in_use(more)

    def rested(self, deployment: str, seconds: float) -> None:
        for each in self._all:
            each.rested(deployment, seconds)

    def fanned_out(
        self, calls: Mapping[str, Callable[[], T]]
    ) -> AbstractContextManager[Mapping[str, Callable[[], T]]]:
        return _Nested(self._all, calls)

    def carried(self, deployment: str, call: Callable[[], T]) -> Callable[[], T]:
        for each in self._all:
            call = each.carried(deployment, call)
        return call

    def passed(self, seconds: float, *, well: bool) -> None:
        for each in self._all:
            each.passed(seconds, well=well)

    def looked(self, chore: str, *, well: bool) -> None:
        for each in self._all:
            each.looked(chore, well=well)


class _Nested(ExitStack):
    def __init__(self, listeners: tuple[Listener, ...], calls: Mapping[str, Any]) -> None:
        super().__init__()
        self._listeners = listeners
        self._calls = calls

    def __enter__(self) -> Any:
        super().__enter__()
        calls = self._calls
        for each in self._listeners:
            calls = self.enter_context(each.fanned_out(calls))
        return calls


_listener = Listener()


def tell() -> Listener:
    """Whom to tell."""
    return _listener


def listen(*listeners: Listener) -> None:
    """Tell these from now on, and nobody else; none: nobody."""
    global _listener  # noqa: PLW0603  # one for the whole process, set at its start
    found = list(listeners)
    _listener = Listener() if not found else found[0] if len(found) == 1 else Listeners(found)
