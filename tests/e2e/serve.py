"""`manifold serve` as a person starts it: in a directory of his, by a command of a shell."""

import os
import shlex
import socket
import subprocess
from pathlib import Path
from typing import Self

import psutil

from tests.e2e.gateway import RUNNING, Server

_OURS = ("MANIFOLD_", "LITELLM_", "OPENAI_", "AZURE_", "PYTEST_", "PYTHON", "VIRTUAL_ENV")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def plain_environment() -> dict[str, str]:
    """This process's environment without what steers us, pip or Python."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_OURS) and name != "DATABASE_URL"
    }


class Served(Server):
    """A gateway by a shell's command that ends in `manifold serve`; up when it is entered."""

    def __init__(self, command: str, directory: Path, *, ready_timeout: float = 60.0) -> None:
        super().__init__("served", directory)
        self._directory = directory
        self._ready_timeout = ready_timeout
        port = free_port()
        self.command = f"{command} --port {port}"
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        for stream in ("stdout", "stderr"):
            self._log(stream).unlink(missing_ok=True)
        with self._log("stdout").open("ab") as out, self._log("stderr").open("ab") as err:
            self._process = subprocess.Popen(
                ["bash", "-euc", self.command],
                cwd=self._directory,
                env=plain_environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        RUNNING.append(self)
        self._wait_ready("/health/readiness", self._ready_timeout)
        return self

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM to gunicorn itself, not to the shell that waits for it; the exit code."""
        process = self._process
        assert process is not None
        self._api.close()
        if process.poll() is None:
            shell = psutil.Process(process.pid)
            # A shell with nothing more to do becomes its last command.
            (*_, server) = (shell, *shell.children())
            if shell.name() != "bash":
                server = shell
            server.send_signal(self.stop_signal)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            return self.kill()
        self._ended()
        return process.returncode


def quoted(*words: object) -> str:
    """A shell's command of these words."""
    return shlex.join(str(word) for word in words)
