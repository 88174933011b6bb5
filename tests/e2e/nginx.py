"""A real nginx with deploy/nginx.conf in front of the gateway, without privileges."""

import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import openai
import requests
import trustme

from tests.e2e.gateway import ROOT, RUNNING, Server, _environment, wait_until

BINARY = shutil.which("nginx") or "/usr/sbin/nginx"
CONFIGURATION = ROOT / "deploy" / "nginx.conf"
HOST = "127.0.0.1"
ONE_NODE = "proxy_next_upstream off;"
NODE = "    server 127.0.0.1:4000 fail_timeout=0;"

# What a distribution's nginx.conf has around the file under test; everything inside one folder.
MAIN = """
daemon off;
{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log stderr info;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/temp/body;
    proxy_temp_path {folder}/temp/proxy;
    fastcgi_temp_path {folder}/temp/fastcgi;
    uwsgi_temp_path {folder}/temp/uwsgi;
    scgi_temp_path {folder}/temp/scgi;
    include {folder}/manifold.conf;
}}
"""


def is_installed() -> bool:
    return Path(BINARY).exists()


class Nginx(Server):
    """nginx on free ports in front of `behind`, addresses such as "127.0.0.1:4000".

    With `files`, a data directory, it sends downloads from there by itself. `url` speaks TLS and
    `plain_url` does not; `ca` is what clients must trust.
    """

    def __init__(self, folder: Path, *behind: str, files: Path | None = None) -> None:
        super().__init__("nginx", folder)
        self._folder = folder
        self.temp = folder / "temp"
        self.temp.mkdir()
        self.ca = folder / "ca.pem"
        self._certify()
        self._api.verify = str(self.ca)
        with ExitStack() as stack:
            # Bound here and passed on as in a binary upgrade: nobody guesses a port.
            sockets = [stack.enter_context(each) for each in _listeners()]
            for each in sockets:
                # As nginx's own are: two workers wake up for one connection, and whoever does not
                # get it would wait for the next one, and serve nobody meanwhile.
                each.setblocking(False)
            plain, plain_v6, secure, secure_v6 = (_name(each) for each in sockets)
            self.plain_url, self.url = f"http://{plain}", f"https://{secure}"
            self.port = sockets[2].getsockname()[1]
            text = CONFIGURATION.read_text()
            for old, new, times in (
                ("listen 80;", f"listen {plain};", 1),
                ("listen [::]:80;", f"listen {plain_v6};", 1),
                ("listen 443 ssl http2;", f"listen {secure} ssl http2;", 1),
                ("listen [::]:443 ssl http2;", f"listen {secure_v6} ssl http2;", 1),
                ("server_name manifold.example.com;", "server_name localhost;", 2),
                ("/etc/nginx/manifold/fullchain.pem", f"{folder}/chain.pem", 1),
                ("/etc/nginx/manifold/privkey.pem", f"{folder}/key.pem", 1),
                (NODE, "\n".join(NODE.replace("127.0.0.1:4000", each) for each in behind), 1),
            ):
                assert text.count(old) == times, f"{CONFIGURATION}: {old!r}"
                text = text.replace(old, new)
            if len(behind) > 1:
                # What the file tells to change for a second node.
                assert text.count(ONE_NODE) == 1
                text = text.replace(ONE_NODE, ONE_NODE.replace("off", "error"))
            if files is not None:
                text = _with_files(text, files)
            (folder / "manifold.conf").write_text(text)
            user = "user root;" if os.geteuid() == 0 else ""  # Else nobody may enter the folder.
            (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
            self._begin(sockets)
        wait_until(self._answers)

    def _certify(self) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert(HOST, "localhost")
        issued.private_key_pem.write_to_path(str(self._folder / "key.pem"))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(self._folder / "chain.pem"), append=True)
        authority.cert_pem.write_to_path(str(self.ca))

    def _begin(self, sockets: list[socket.socket]) -> None:
        fds = [each.fileno() for each in sockets]
        with self._log("stdout").open("ab") as out, self._log("stderr").open("ab") as err:
            self._process = subprocess.Popen(
                [BINARY, "-p", self._folder, "-e", "stderr", "-c", self._folder / "nginx.conf"],
                env=_environment({"NGINX": "".join(f"{fd};" for fd in fds)}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=fds,
                start_new_session=True,
            )
        RUNNING.append(self)

    def _answers(self) -> bool:
        if not self.running:
            raise RuntimeError(f"nginx ended\n{self.log_text()}")
        with suppress(requests.RequestException):
            # The one address that it never passes on.
            return self._api.get(f"{self.url}/.nginx-error", timeout=5).status_code == 404
        return False

    def temp_changes(self) -> list[tuple[str, int]]:
        """The state of the temp folders; equal before and after when nginx has kept nothing.

        A file there loses its name as soon as it is open, so a look at the names shows nothing,
        but the time of its folder tells.
        """
        found = [self.temp, *self.temp.rglob("*")]
        return sorted((str(each), each.stat().st_mtime_ns) for each in found)

    def trust(self) -> ssl.SSLContext:
        """What a client needs to believe it."""
        return ssl.create_default_context(cafile=str(self.ca))

    def client(self, key: str, **options: Any) -> openai.OpenAI:
        """The real client, without retries; the caller closes it."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            max_retries=0,
            http_client=openai.DefaultHttpxClient(verify=self.trust(), trust_env=False),
            **options,
        )

    def api(self, method: str, path: str, **kw: Any) -> requests.Response:
        """A plain HTTP call; no key unless told in `headers`."""
        kw.setdefault("timeout", 30)
        return self._api.request(method, self.url + path, **kw)

    def connect(self, source: str = HOST) -> ssl.SSLSocket:
        """A connection for bytes of one's own, from the loopback address `source`."""
        plain = socket.create_connection((HOST, self.port), timeout=20, source_address=(source, 0))
        return self.trust().wrap_socket(plain, server_hostname=HOST)


def _with_files(text: str, data_dir: Path) -> str:
    """What the file tells to change so that nginx sends files of the gateway's by itself."""
    silent = 'proxy_set_header X-Manifold-Accel "";'
    start, end = "    # location ~", "    # }\n"
    assert (text.count(silent), text.count(start)) == (1, 1)
    text = text.replace(silent, silent.replace('""', '"/_manifold/"'))
    before, _, rest = text.partition(start)
    block, _, after = (start + rest).partition(end)
    block = re.sub("(?m)^    # ", "    ", block + end)
    assert block.count("/var/lib/manifold/data/") == 1
    return before + block.replace("/var/lib/manifold/data", str(data_dir)) + after


def _listeners() -> Iterator[socket.socket]:
    for _ in ("plain", "secure"):
        yield socket.create_server((HOST, 0), backlog=512)
        try:
            yield socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=512)
        except OSError:  # This machine has no IPv6.
            yield socket.create_server((HOST, 0), backlog=512)


def _name(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
