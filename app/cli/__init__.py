"""The `manifold` command; one module for each group of its commands."""

import click

import app
from app.cli.audit import audit
from app.cli.backups import backup, restore
from app.cli.database import db
from app.cli.fsck import fsck
from app.cli.master_key import master_key
from app.cli.running import serve, worker


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(app.__version__, prog_name="manifold")
def main() -> None:
    """Manifold: a gateway that speaks the OpenAI API, with one file id for every provider."""


for _command in (serve, worker, db, backup, restore, fsck, audit, master_key):
    main.add_command(_command)
