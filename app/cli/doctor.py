"""`manifold doctor`: what is wrong with this installation, and what to do."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from app.cli import options, remote
from app.doctor.examine import examine
from app.doctor.findings import Finding

_STATUS = {"ok": 0, "warning": 1, "fault": 2}
_COLORS = {"ok": "green", "warning": "yellow", "fault": "red"}


@click.command(epilog="Exit status: 0 all is well; 1 warnings; 2 faults.")
@options.config
@click.option(
    "--url", metavar="URL", help="The gateway's address as clients have it: looked at too."
)
@click.option(
    "--nginx",
    "site",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="nginx's site file.  [default: what `nginx -T` shows, if there is one]",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=4000,
    show_default=True,
    help="Where the gateway itself listens, to know its place in nginx's configuration.",
)
@click.option("--quiet", "-q", is_flag=True, help="Only what is not well.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def doctor(
    *, config: str, url: str | None, site: Path | None, port: int, quiet: bool, as_json: bool
) -> None:
    """Look at this installation: what is wrong, why it matters, what to do.

    Looks at the configuration, the master key, the disk, open files, the database, the task queue,
    the worker, the way to every provider, its clock and our credential, and nginx. Changes nothing;
    run it as the user that runs the gateway, with its environment.

    \b
    manifold doctor
    manifold doctor --url https://manifold.example.com
    """
    worst = 0
    for finding in examine(Path(config), os.environ, url=url, site=site, port=port):
        worst = max(worst, _STATUS[finding.level])
        if quiet and finding.level == "ok":
            continue
        if as_json:
            click.echo(json.dumps(asdict(finding), ensure_ascii=False))
        else:
            _tell(finding)
    sys.exit(worst)


def _tell(finding: Finding) -> None:
    mark = click.style(f"{finding.level:<7}", fg=_COLORS[finding.level])
    click.echo(f"{mark}  {finding.check}: {remote.plain(finding.what)}")
    if finding.why:
        click.echo(f"         why: {remote.plain(finding.why)}")
    if finding.cure:
        click.echo(f"         do:  {remote.plain(finding.cure)}")
