"""LiteLLM Proxy with managed files and without PostgreSQL, its file table held in memory.

Run by LiteLLM's own interpreter in place of its command, with the same arguments: its managed
files need a database engine that its installer downloads, which is more than a benchmark should
ask for. A table in memory is faster than any database, so what is measured is its best case.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

from litellm.proxy import hooks
from litellm.proxy.proxy_cli import run_server
from litellm.types.llms.openai import OpenAIFileObject
from litellm_enterprise.proxy.hooks.managed_files import _PROXY_LiteLLMManagedFiles


class Row(SimpleNamespace):
    """A row as Prisma's client gives it."""

    def model_dump(self) -> dict[str, Any]:
        """The columns by their names."""
        return dict(vars(self))


class Table:
    """As much of Prisma's table as managed files use, with the rows in one dict."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    async def find_first(self, where: dict[str, Any]) -> Row | None:
        """The row with this id."""
        return self._rows.get(where["unified_file_id"])

    async def find_many(self, where: dict[str, Any], take: int, **_: Any) -> list[Row]:
        """The latest rows; the benchmark lists as an administrator, for whom nothing is hidden."""
        return list(self._rows.values())[-take:][::-1]

    async def upsert(self, where: dict[str, Any], data: dict[str, Any]) -> Row:
        """Add the row, or change it."""
        is_known = where["unified_file_id"] in self._rows
        fields = dict(data["update" if is_known else "create"])
        fields["model_mappings"] = json.loads(fields["model_mappings"])
        if "file_object" in fields:
            fields["file_object"] = OpenAIFileObject.model_validate_json(fields["file_object"])
        row = self._rows.setdefault(where["unified_file_id"], Row(team_id=None, created_by=None))
        vars(row).update(fields)
        return row

    async def update_many(self, where: dict[str, Any], data: dict[str, Any]) -> int:
        """Nothing: no benchmark changes what it has stored."""
        return 0


class ManagedFiles(_PROXY_LiteLLMManagedFiles):  # type: ignore[misc]  # not installed with us
    """Managed files over that table."""

    def __init__(self, internal_usage_cache: Any) -> None:
        database = SimpleNamespace(litellm_managedfiletable=Table())
        super().__init__(internal_usage_cache, SimpleNamespace(db=database))


hooks.PROXY_HOOKS["managed_files"] = ManagedFiles
sys.exit(run_server())
