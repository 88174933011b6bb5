"""The check of everything that is kept: rows, this machine's disk, every provider account.

It is made beside gateways and workers that go on. So no row is believed that somebody holds, or has
written a short while ago; whatever looks wrong is looked at again before it is told; and a repair
is what a request or a worker would do about the same thing, under the same leases.
"""

from collections.abc import Callable, Collection

from app.db.engine import Database
from app.services.account_check import AccountCheck
from app.services.findings import Asked, Finding, Report, Summary
from app.services.reconciler import Reconciler
from app.services.row_check import RowCheck
from app.services.store_check import StoreCheck


class Fsck:
    """One pass over all of it."""

    def __init__(
        self,
        database: Database,
        reconciler: Reconciler,
        *,
        row_check: RowCheck,
        store_check: StoreCheck,
        account_check: AccountCheck,
    ) -> None:
        self._database = database
        self._reconciler = reconciler
        self._rows = row_check
        self._store = store_check
        self._accounts = account_check

    def run(
        self, asked: Asked, tell: Callable[[Finding], None], *, settle_seconds: float = 1.0
    ) -> Summary:
        """Tell of every difference as it is found, and mend it if that is asked for.

        Raises DatabaseUnavailable.
        """
        report = Report(self._database, asked, tell, settle_seconds)
        self._rows.whole(report)
        # Before the accounts: what is of no use there is not taken for a copy. The files last: by
        # then their rows say which copies are gone.
        self._store.run(report)
        self._accounts.run(report)
        self._rows.files(report)
        if asked.repair:
            self._work()
        return report.summary

    def _work(self) -> None:
        """Do what is due about copies, each once: what was mended comes to its end."""
        seen: set[str] = set()
        while due := _unseen(self._reconciler.due(), seen):
            for copy_id in due:
                seen.add(copy_id)
                self._reconciler.look(copy_id)


def _unseen(copy_ids: Collection[str], seen: Collection[str]) -> list[str]:
    return [copy_id for copy_id in copy_ids if copy_id not in seen]
