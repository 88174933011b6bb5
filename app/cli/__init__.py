"""The `manifold` command; one module for each group of its commands.

A module is imported when one of its commands is asked for: nobody waits for what the others need.
"""

# ruff: noqa: PLC0415
from collections.abc import Callable, Mapping

import click

import app


def _serve() -> click.Command:
    from app.cli.running import serve

    return serve


def _worker() -> click.Command:
    from app.cli.running import worker

    return worker


def _db() -> click.Command:
    from app.cli.database import db

    return db


def _backup() -> click.Command:
    from app.cli.backups import backup

    return backup


def _restore() -> click.Command:
    from app.cli.backups import restore

    return restore


def _fsck() -> click.Command:
    from app.cli.fsck import fsck

    return fsck


def _audit() -> click.Command:
    from app.cli.audit import audit

    return audit


def _master_key() -> click.Command:
    from app.cli.master_key import master_key

    return master_key


def _users() -> click.Command:
    from app.cli.users import users

    return users


def _keys() -> click.Command:
    from app.cli.keys import keys

    return keys


def _files() -> click.Command:
    from app.cli.files import files

    return files


def _batches() -> click.Command:
    from app.cli.batches import batches

    return batches


def _models() -> click.Command:
    from app.cli.models import models

    return models


def _completion() -> click.Command:
    from app.cli.completion import completion

    return completion


def _doctor() -> click.Command:
    from app.cli.doctor import doctor

    return doctor


def _import_litellm() -> click.Command:
    from app.cli.litellm import import_litellm

    return import_litellm


_COMMANDS: Mapping[str, Callable[[], click.Command]] = {
    "serve": _serve,
    "worker": _worker,
    "users": _users,
    "keys": _keys,
    "files": _files,
    "batches": _batches,
    "models": _models,
    "db": _db,
    "backup": _backup,
    "restore": _restore,
    "fsck": _fsck,
    "audit": _audit,
    "master-key": _master_key,
    "doctor": _doctor,
    "import-litellm": _import_litellm,
    "completion": _completion,
}


class _Commands(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        command = _COMMANDS.get(name)
        return command() if command else None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(app.__version__, prog_name="manifold")
def main() -> None:
    """Manifold: a gateway that speaks the OpenAI API, with one file id for every provider."""
