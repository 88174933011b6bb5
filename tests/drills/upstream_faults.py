"""What upstreams do to a gateway, as actions of the fake one (see Upstream.fail)."""

from typing import Any

ELSEWHERE = "http://127.0.0.1:9/elsewhere"
"""Where a redirect points; nobody listens there, and nobody may ask."""
ASIDE = "/v1/aside"
"""Where another one points: at the same host, where it would be seen."""
UNTRUSTED = "certificate that nobody vouches for"
"""No action: meanwhile the account's address is one whose certificate cannot be trusted."""

FAULTS: dict[str, dict[str, Any]] = {
    "reset after 3,000 bytes of the request": {"close": "mid_request", "after_bytes": 3_000},
    "reset before the answer": {"close": "before_body"},
    "answer lost after the work was done": {"close": "before_body", "handle": True},
    "500": {"status": 500},
    "500 after the work was done": {"status": 500, "handle": True},
    "503": {"status": 503},
    "429 with Retry-After": {"status": 429, "headers": {"Retry-After": "0"}},
    "401": {"status": 401},
    "answer cut off in the middle": {"close": "mid_body", "after_bytes": 20, "handle": True},
    "stall before the answer": {"hang": True},
    "stall in the middle of the answer": {"hang": "mid_body", "after_bytes": 20, "handle": True},
    "slow": {"delay_s": 0.2},
    "answer that trickles, 16 bytes at a time": {"trickle_s": 0.01},
    "Content-Length larger than the answer": {"content_length": 7},
    "Content-Length smaller than the answer": {"content_length": -7},
    "garbage instead of JSON": {"status": 200, "body": "<html>hello</html>", "handle": True},
    "JSON that is no object": {"status": 200, "body": [1, 2], "handle": True},
    "JSON without an id": {"status": 200, "body": {}, "handle": True},
    "redirect to another host": {"status": 307, "headers": {"Location": ELSEWHERE}},
    "redirect to another path": {"status": 307, "headers": {"Location": ASIDE}},
    UNTRUSTED: {},
}
