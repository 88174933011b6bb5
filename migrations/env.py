"""Run the migrations on the connection we are given, or on DATABASE_URL."""

import os
from typing import Any, Literal

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection

from app.db.engine import connect
from app.db.tables import Base, UtcDateTime


def render_item(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """A migration names no type of ours, for it must still run when that type is gone."""
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


def run(connection: Connection) -> None:
    """Migrate on this connection, inside its transaction if it is in one."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite cannot alter a column: the table is copied instead.
        render_as_batch=connection.dialect.name == "sqlite",
        # Our SQLite connections begin their transactions themselves, so DDL can be rolled back.
        transactional_ddl=True,
        render_item=render_item,
    )
    with context.begin_transaction():
        context.run_migrations()


def main() -> None:
    """The connection from `app.db.migrate`, else one to DATABASE_URL."""
    given = context.config.attributes.get("connection")
    if given is not None:
        run(given)
        return
    url = os.environ.get("DATABASE_URL")
    if not url:
        raise CommandError("set DATABASE_URL, or use `manifold db upgrade`")
    if context.is_offline_mode():
        raise CommandError("migrations are written for a connection, not for --sql")
    engine = connect(url).engine
    with engine.connect().execution_options(manifold_writes=True) as connection:
        run(connection)
    engine.dispose()


main()
