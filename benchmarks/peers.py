"""Install the gateways that Manifold is compared with, from their own packages.

    python -m benchmarks.peers install [litellm] [portkey]

They go into benchmarks/.peers, which git does not see, and nowhere else.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent / ".peers"
LITELLM = HOME / "litellm" / "bin" / "litellm"
PORTKEY = HOME / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build/start-server.js"

LITELLM_WANTED = "litellm[proxy]>=1.80"
PORTKEY_PACKAGE = {
    "name": "manifold-benchmark-peer",
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "^1.15.2"},
    # With a later one streams and binary downloads are answered with 500.
    "overrides": {"@hono/node-server": "1.13.0"},
}


def install_litellm() -> None:
    """LiteLLM Proxy with its own interpreter's packages."""
    folder = HOME / "litellm"
    _run([sys.executable, "-m", "venv", str(folder)])
    _run([str(folder / "bin" / "pip"), "install", "--quiet", LITELLM_WANTED])


def install_portkey() -> None:
    """Portkey's gateway by npm."""
    folder = HOME / "portkey"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text(json.dumps(PORTKEY_PACKAGE))
    _run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder)])


def versions() -> dict[str, str]:
    """What is installed."""
    found = {}
    for path in (HOME / "litellm").glob("lib/*/site-packages/litellm-*.dist-info"):
        found["LiteLLM"] = path.name.removeprefix("litellm-").removesuffix(".dist-info")
    package = PORTKEY.parents[1] / "package.json"
    if package.exists():
        found["Portkey's gateway"] = json.loads(package.read_text())["version"]
    return found


def _run(command: list[str]) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)  # noqa: S603  # our own command lines


_INSTALLERS = {"litellm": install_litellm, "portkey": install_portkey}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("action", choices=["install"])
    parser.add_argument("which", nargs="*", metavar="PEER", help=f"{', '.join(_INSTALLERS)}")
    which = parser.parse_args().which or list(_INSTALLERS)
    if unknown := set(which) - set(_INSTALLERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    HOME.mkdir(exist_ok=True)
    for name in which:
        _INSTALLERS[name]()
    print(versions())


if __name__ == "__main__":
    main()
