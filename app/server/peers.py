"""Who asks, and what he is believed."""

import ipaddress
from typing import Any

_TRUSTED_ONLY = frozenset({"X-MANIFOLD-ACCEL"})
"""Headers that mean something only from a trusted proxy (see `app.api.accel`)."""


def caller(req: Any, peer: Any, *, is_trusted: bool) -> Any:
    """Who asks: the peer, or the last one that a trusted proxy names in X-Forwarded-For.

    Only the last is what the proxy itself has seen; those before it are the client's own words.
    What else only such a proxy may say is taken out of everybody else's headers.
    """
    if not is_trusted:
        req.headers = [each for each in req.headers if each[0] not in _TRUSTED_ONLY]
        return peer
    named = [value for name, value in req.headers if name == "X-FORWARDED-FOR"]
    last = named[-1].rpartition(",")[2].strip() if named else ""
    try:
        return str(ipaddress.ip_address(last)), 0
    except ValueError:
        return peer
