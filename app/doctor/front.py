"""What stands in front: nginx's limits, and a gateway's own address."""

import http.client
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from app.doctor.findings import Finding, fault, ok, warning
from app.settings import Settings

MB = 1024 * 1024

_TOKEN = re.compile(r"""\#[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|[^\s{};"']+""")
_UNITS = {"": 1, "k": 1024, "m": MB, "g": 1024 * MB}
_SECONDS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DEFAULTS = {
    "client_max_body_size": "1m",
    "proxy_request_buffering": "on",
    "proxy_buffering": "on",
    "proxy_read_timeout": "60s",
    "proxy_send_timeout": "60s",
}
_ENOUGH_SECONDS = 600.0
_OVERHEAD_MB = 1


@dataclass
class Block:
    """A block of nginx's configuration: its name, what it says itself, what it has inside."""

    name: list[str]
    directives: dict[str, list[str]] = field(default_factory=dict)
    blocks: "list[Block]" = field(default_factory=list)


def nginx(settings: Settings, site: Path | None, port: int) -> Iterator[Finding]:
    """The limits of the places that lead to the gateway: of the site file, else of `nginx -T`."""
    if site is not None:
        try:
            text = site.read_text(errors="replace")
        except OSError as error:
            what = f"{site}: {error.strerror}"
            yield fault("nginx", what, "it was to be looked at", "name the site file that is used")
            return
    else:
        binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
        if binary is None:
            return
        done = subprocess.run(  # noqa: S603  # nginx itself
            [binary, "-T"], capture_output=True, text=True, timeout=20, check=False
        )
        if done.returncode != 0:
            told = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield warning(
                "nginx",
                f"`nginx -T` fails: {told[:200]}",
                "its limits are not known",
                "run this as root, or name the site file with --nginx",
            )
            return
        text = done.stdout
    places = list(_places(parse(text)))
    ours = [(place, found) for place, target, found in places if _leads(target, port)]
    if site is not None:
        ours = ours or [(place, found) for place, _, found in places]
    if not ours:
        if site is not None:
            what = f"{site}: nothing in it leads to a gateway (proxy_pass)"
            yield warning("nginx", what, "it is not in front of one", "see deploy/nginx.conf")
        return
    for place, found in ours:
        yield from _limits(place, found, settings)


def parse(text: str) -> Block:
    """nginx's configuration as blocks; what it includes is not followed."""
    root = Block([])
    around, words = [root], list[str]()
    for word in _TOKEN.findall(text):
        if word.startswith("#"):
            continue
        if word == "{":
            inner = Block(words)
            around[-1].blocks.append(inner)
            around.append(inner)
            words = []
        elif word == "}":
            if len(around) > 1:
                around.pop()
            words = []
        elif word == ";":
            if words:
                around[-1].directives.setdefault(words[0], words[1:])
            words = []
        else:
            words.append(word.strip("\"'"))
    return root


def _places(root: Block) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Name, targets and limits of each block that has a proxy_pass."""
    upstreams: dict[str, list[str]] = {}

    def collect(block: Block) -> None:
        for inner in block.blocks:
            if inner.name[:1] == ["upstream"] and len(inner.name) > 1:
                upstreams[inner.name[1]] = inner.directives.get("server", [""])[:1]
            collect(inner)

    def walk(
        block: Block, known: dict[str, str]
    ) -> Iterator[tuple[str, list[str], dict[str, str]]]:
        here = {**known}
        for name in _DEFAULTS:
            if name in block.directives:
                here[name] = (block.directives[name] or [""])[0]
        if "proxy_pass" in block.directives:
            target = (block.directives["proxy_pass"] or [""])[0]
            host = target.partition("://")[2].partition("/")[0]
            yield " ".join(block.name), upstreams.get(host, [host]), here
        for inner in block.blocks:
            yield from walk(inner, here)

    collect(root)
    yield from walk(root, _DEFAULTS)


def _leads(targets: Sequence[str], port: int) -> bool:
    return any(target.endswith(f":{port}") for target in targets)


def _limits(place: str, found: dict[str, str], settings: Settings) -> Iterator[Finding]:
    needed = settings.max_file_size_mb + _OVERHEAD_MB
    size = _bytes(found["client_max_body_size"])
    troubles = 0
    if size is not None and 0 < size < needed * MB:
        troubles += 1
        yield fault(
            "nginx",
            f"{place}: client_max_body_size is {found['client_max_body_size']}",
            f"uploads of more are refused with 413, and max_file_size_mb is "
            f"{settings.max_file_size_mb}",
            "client_max_body_size 0; in this place: the gateway has limits of its own",
        )
    if found["proxy_request_buffering"] != "off":
        troubles += 1
        yield warning(
            "nginx",
            f"{place}: proxy_request_buffering is on",
            "an upload is written to nginx's disk first, and begins at the provider after that",
            "proxy_request_buffering off;",
        )
    if found["proxy_buffering"] != "off":
        troubles += 1
        yield warning(
            "nginx",
            f"{place}: proxy_buffering is on",
            "downloads are written to nginx's disk, and streams may come in lumps",
            "proxy_buffering off;",
        )
    for name in ("proxy_read_timeout", "proxy_send_timeout"):
        seconds = _duration(found[name])
        if seconds is not None and seconds < _ENOUGH_SECONDS:
            troubles += 1
            yield warning(
                "nginx",
                f"{place}: {name} is {found[name]}",
                "a model that thinks for longer, or a slow upload, is answered 504",
                f"{name} 3600s;",
            )
    if not troubles:
        yield ok("nginx", f"{place}: its limits suit the gateway's")


def _bytes(text: str) -> int | None:
    found = re.fullmatch(r"(\d+)([kmg]?)", text.lower())
    return int(found[1]) * _UNITS[found[2]] if found else None


def _duration(text: str) -> float | None:
    found = re.fullmatch(r"(\d+)(ms|s|m|h|d|)", text.lower())
    return int(found[1]) * _SECONDS[found[2]] if found else None


def address(settings: Settings, url: str) -> Iterator[Finding]:
    """A live look at a gateway's address: does it answer, and does it take files of full size?

    No file is sent: who cannot take one says so when it is announced.
    """
    check, parts = "address", urlsplit(url)
    why = "clients cannot use it"
    host = parts.hostname or ""
    if parts.scheme == "http" and host not in ("127.0.0.1", "::1", "localhost"):
        yield warning(
            check,
            f"{url} is not encrypted",
            "keys and files can be read on the way",
            "put nginx with TLS in front: deploy/nginx.conf",
        )
    try:
        status, body = _asked(parts.scheme, parts.netloc, "GET", "/health/readiness", 0)
    except ssl.SSLError as error:
        cure = "renew the certificate, and send its whole chain"
        yield fault(check, f"{url}: TLS: {error.reason or error}", why, cure)
        return
    except (OSError, http.client.HTTPException, ValueError) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        cure = "start the gateway (`manifold serve`), or mend the address"
        yield fault(check, f"{url}: {told}", why, cure)
        return
    if status != http.client.OK:
        cure = (
            "the gateway's database is away: see database"
            if b"unhealthy" in body
            else "let what stands there pass every path to the gateway; see deploy/nginx.conf"
        )
        yield fault(check, f"{url}: /health/readiness answers {status}", why, cure)
        return
    size = settings.max_file_size_mb * MB
    try:
        status, body = _asked(parts.scheme, parts.netloc, "POST", "/v1/files", size)
    except (OSError, http.client.HTTPException) as error:
        told = f"{url}: an announced upload is cut off ({type(error).__name__})"
        cure = "look at the limits of what stands in front"
        yield warning(check, told, "large uploads fail", cure)
        return
    if status == http.client.REQUEST_ENTITY_TOO_LARGE:
        yield fault(
            check,
            f"{url}: refuses a file of {settings.max_file_size_mb} MB, max_file_size_mb",
            "large uploads are answered 413 by what stands in front",
            "client_max_body_size 0; in nginx, or its like in another proxy",
        )
    elif status == http.client.UNAUTHORIZED and _is_ours(body):
        yield ok(check, f"{url}: answers, and takes files of {settings.max_file_size_mb} MB")
    else:
        what = f"{url}: an upload without a key is answered {status}, and not by a gateway"
        cure = "let what stands there pass the headers; it must not have a log-in of its own"
        yield warning(check, what, "clients cannot sign in", cure)


def _asked(scheme: str, netloc: str, method: str, path: str, size: int) -> tuple[int, bytes]:
    """Status and beginning of the answer to a request whose body is announced and never sent."""
    kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
    connection = kind(netloc, timeout=10)
    try:
        connection.putrequest(method, path)
        if size:
            connection.putheader("Content-Type", "multipart/form-data; boundary=x")
            connection.putheader("Content-Length", str(size))
        connection.putheader("Connection", "close")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(65536)
    except TimeoutError as error:
        raise TimeoutError("no answer in time") from error
    finally:
        connection.close()


def _is_ours(body: bytes) -> bool:
    try:
        return "code" in json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
