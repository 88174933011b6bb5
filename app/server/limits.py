"""How long a client may take, and how much its request's head may hold."""

HEAD_SECONDS = 30
"""How long a request's line and headers may take, from their first byte."""

IDLE_SECONDS = 300
"""How long a client may send nothing of a body, or take nothing of an answer."""

LINGER_SECONDS = 30
LINGER_IDLE_SECONDS = 2
"""How long, and across what gap, the rest of a refused body is read and thrown away."""

DRAIN_SECONDS = 5
"""How long the rest of a body that nobody wanted is read, so that the connection may be kept."""

STAY_SECONDS = 0.02
"""How long a connection's next request is expected at once, before it is like any that is idle."""

LINE_BYTES = 8190
HEADERS = 100
HEADER_BYTES = 8190
"""The longest first line, the most headers, and the longest of them."""
