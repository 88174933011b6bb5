"""gunicorn's settings: `gunicorn -c python:app.serving wsgi:app`.

Behind nginx (deploy/nginx.conf) this is a complete server. Without it, two limits are ours alone:
a request's head must arrive within limits.HEAD_SECONDS, and a transfer may stand still for
limits.IDLE_SECONDS, in either direction. A client that keeps both and is slow on purpose still
holds one of `threads`, or of `worker_connections` where the workers are gevent's.
"""

import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from gunicorn import glogging
from gunicorn.workers import SUPPORTED_WORKERS

if __name__ == "__config__":
    # Read by its path: the current directory, which comes first, may hold an `app` too.
    sys.path.insert(0, str(Path(__file__).parent.parent))

from app.server import limits
from app.server.refusals import Refusing


def _number(name: str, default: int) -> int:
    said = os.environ.get(name, "")
    if said and not (said.isdecimal() and int(said) > 0):
        raise SystemExit(f"{name}: {said!r} is not a positive number")
    return int(said) if said else default


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_class() -> str:
    said = os.environ.get("MANIFOLD_WORKER_CLASS", "") or "gthread"
    if said not in _WORKERS:
        raise SystemExit(f"MANIFOLD_WORKER_CLASS: {said!r} is not one of: {', '.join(_WORKERS)}")
    return said


_WORKERS = {"gthread": "app.server.threads.Worker", "gevent": "app.server.greenlets.Worker"}
# What `-k` names too: gunicorn's own have none of our limits.
SUPPORTED_WORKERS.update(_WORKERS)


class Log(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's log, without a line a request: the application writes that one.

    gunicorn takes a `logconfig_dict` for the wish to have them, and then makes each, which is a
    fifth of a small request, whether or not anybody reads it.
    """

    def _compute_access_log_enabled(self) -> bool:
        return self.cfg.accesslog is not None


def on_starting(server: Any) -> None:
    """Refuse an address that somebody listens on, and allow as many open files as we may."""
    if not issubclass(server.cfg.worker_class, Refusing):
        said = server.cfg.worker_class_str
        raise RuntimeError(f"worker class {said!r} is not one of: {', '.join(_WORKERS)}")  # noqa: TRY004  # no type
    if server.cfg.http_parser != http_parser:
        raise RuntimeError(f"http_parser is {http_parser!r}: the others are not as strict")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = 65536 if most == resource.RLIM_INFINITY else min(most, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    if not server.cfg.reuse_port or "GUNICORN_PID" in os.environ:
        return
    if any(isinstance(address, tuple) and address[1] == 0 for address in server.cfg.address):
        # Each worker would be given another port.
        server.cfg.set("reuse_port", False)
        return
    for address in server.cfg.address:
        # With reuse_port a second gateway would get half of the first one's connections.
        if isinstance(address, tuple):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(address)
                except OSError as error:
                    raise RuntimeError(
                        f"cannot listen on {address[0]}:{address[1]}: {error.strerror}"
                    ) from error


def pre_fork(_server: Any, worker: Any) -> None:
    """Let the first worker alone say what is said once (see `app.start`)."""
    if worker.age > 1:
        os.environ["MANIFOLD_ANNOUNCED"] = "1"


bind = "127.0.0.1:4000"
proc_name = "manifold"
# Measured (docs/serving.md): threads answer small requests as fast, take what blocks (SQLite, a
# slow disk) better, and 64 of them are enough for most. gevent is for thousands of streams.
worker_class = _worker_class()
workers = _number("WEB_CONCURRENCY", min(4, _cores()))
# A stream holds its thread from the first to the last word, so threads are what streams there
# can be at a time (per worker). An idle thread costs nothing until it has run once.
threads = _number("MANIFOLD_THREADS", 64)
# The most connections of a worker, idle ones too; with gevent, the most streams.
worker_connections = 4000
# Seconds without a heartbeat. Migrating a large database happens before the first one.
timeout = 300
graceful_timeout = 120
# Longer than nginx keeps its own connections (60), so that nginx is the one who closes.
keepalive = 75
# Measured: on a shared socket a burst of connections can all land in one worker. A socket that
# systemd opened is shared whatever we say, and with reuse_port gunicorn would not look at it.
reuse_port = "LISTEN_FDS" not in os.environ
preload_app = False
# Only a proxy on this host, or one at the addresses that the operator names, may say who the client
# is and that it came by https, and none may rewrite the path.
forwarded_allow_ips = os.environ.get("FORWARDED_ALLOW_IPS") or "127.0.0.1,::1"
forwarder_headers = ""
# gunicorn_h1c, which gunicorn takes where it is installed, lets folded headers pass, and transfer
# codings that we do not know: a proxy in front may see another request in them.
http_parser = "python"
limit_request_line = limits.LINE_BYTES
limit_request_fields = limits.HEADERS
limit_request_field_size = limits.HEADER_BYTES
control_socket_disable = True
# The heartbeat is a file's time stamp; on a busy disk touching it can take seconds.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
logger_class = Log
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": {"handlers": [], "propagate": True}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "lines",
            "stream": "ext://sys.stderr",
        }
    },
    "formatters": {"lines": {"()": "app.logs.JsonLines"}},
}
