"""Users, keys and who presents one, as the one collaborator that the API asks."""

from collections.abc import Callable, Iterable

from app.db.engine import Database
from app.services.callers import Callers
from app.services.keys import Keys
from app.services.users import Users
from app.settings import RetiringKey


class Access(Callers, Users, Keys):
    """Who presents a secret, and everything that is done with users and keys."""

    def __init__(
        self,
        database: Database,
        master_key: str | None,
        on_files_deleted: Callable[[list[str]], None] | None = None,
        retiring_master_keys: Iterable[RetiringKey] = (),
    ) -> None:
        Callers.__init__(self, database, master_key, retiring_master_keys)
        Users.__init__(self, database, on_files_deleted)
        Keys.__init__(self, database)
