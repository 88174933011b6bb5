"""Who asks."""

import ipaddress
from typing import Any


def caller(req: Any, peer: Any) -> Any:
    """Who asks: the peer, or the last one that a trusted proxy names in X-Forwarded-For.

    Only the last is what the proxy itself has seen; those before it are the client's own words.
    """
    if not req._peer_is_trusted_proxy():
        return peer
    named = [value for name, value in req.headers if name == "X-FORWARDED-FOR"]
    last = named[-1].rpartition(",")[2].strip() if named else ""
    try:
        return str(ipaddress.ip_address(last)), 0
    except ValueError:
        return peer
