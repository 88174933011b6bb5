"""What an import makes of single rows of LiteLLM's: nobody may more afterwards than before."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import event, select

from app import ids, settings
from app.db import migrate
from app.db.engine import Database, connect
from app.db.tables import Copy, File, Job, Key, User
from app.errors import OperationRefused
from app.litellm_import import deployments, importing, source
from app.litellm_import.deployments import deployment_id
from app.litellm_import.report import Line, Report
from app.services.callers import Callers
from tests.e2e import inside
from tests.litellm_rows import LiteLLM, encoded, sha256

CONFIG = {
    "model_list": [
        {
            "model_name": "gpt-4o",
            "litellm_params": {
                "model": "openai/gpt-4o",
                "api_key": "os.environ/A_KEY",
                "rpm": 5,
                "timeout": 60.5,
                "extra_headers": {"x-team": "os.environ/A_KEY"},
            },
        },
        {
            "model_name": "gpt-4o",
            "litellm_params": {"model": "openai/gpt-4o", "api_key": "sk-2", "organization": "o"},
            "model_info": {"id": "second"},
        },
        {"model_name": "mini", "litellm_params": {"model": "gpt-4o-mini", "api_key": "sk-3"}},
    ]
}
ENVIRON = {"A_KEY": "sk-first"}
SECRET = "sk-old-0123456789abcdef"
FIRST = deployment_id(
    "gpt-4o",
    {
        "model": "openai/gpt-4o",
        "api_key": "sk-first",
        "rpm": 5,
        "timeout": 60.5,
        "extra_headers": {"x-team": "sk-first"},
    },
)


@pytest.fixture
def litellm() -> Iterator[LiteLLM]:
    with inside.scratch_postgres() as url:
        made = LiteLLM(url)
        yield made
        made.close()


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Database]:
    database = connect(f"sqlite:///{tmp_path / 'ours.db'}")
    migrate.upgrade(database)
    yield database
    database.engine.dispose()


class Run:
    """One import: its report, and what it has told."""

    def __init__(self, litellm: LiteLLM, ours: Database, tmp_path: Path, **more: Any) -> None:
        config, environ = more.get("config", CONFIG), more.get("environ", ENVIRON)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
        (tmp_path / "litellm.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        here = settings.load(tmp_path / "config.yaml", ENVIRON)
        known = deployments.found(here, tmp_path / "litellm.yaml", environ, more.get("said", {}))
        self.lines: list[Line] = []
        self.report = Report(self.lines.append)
        with source.opened(litellm.url) as rows:
            asked = importing.Asked(apply=more.get("apply", True))
            importing.Import(rows, ours, known, self.report).run(asked)

    def why(self, outcome: str) -> list[str]:
        return [line.reason for line in self.lines if line.outcome == outcome]


@pytest.fixture
def run(litellm: LiteLLM, ours: Database, tmp_path: Path) -> Any:
    return lambda **more: Run(litellm, ours, tmp_path, **more)


def found(ours: Database, table: type) -> list[Any]:
    with ours.read() as session:
        return list(session.scalars(select(table)))


def the_key(ours: Database) -> Key:
    [key] = found(ours, Key)
    assert isinstance(key, Key)
    return key


def past(**by: float) -> dt.datetime:
    return (dt.datetime.now(dt.UTC) - dt.timedelta(**by)).replace(tzinfo=None)


def test_a_key_is_what_it_was(litellm, ours, run):
    ends = past(days=-3)
    litellm.user("lea", user_email="Lea@Example.org", user_role="proxy_admin_viewer")
    litellm.key(
        SECRET,
        user_id="lea",
        key_alias="laptop",
        models=["gpt-4o"],
        expires=ends,
        rpm_limit=60,
        max_parallel_requests=3,
        metadata={"tags": ["a"], "logging": [{"callback_vars": {"secret": "sk-langfuse"}}]},
    )
    old = sha256("sk-before-the-last-rotation")
    litellm.add(
        "LiteLLM_DeprecatedVerificationToken",
        id="d",
        token=old,
        active_token_id=sha256(SECRET),
        revoke_at=ends,
    )
    assert run().report.is_whole
    key = the_key(ours)
    assert (key.token, key.previous_token, key.alias) == (sha256(SECRET), old, "laptop")
    assert (key.owner, key.models, key.metadata_) == ("user:lea", ["gpt-4o"], {"tags": ["a"]})
    assert (key.rpm_limit, key.max_parallel_requests, key.blocked) == (60, 3, False)
    assert key.expires_at is not None
    assert abs(key.expires_at.replace(tzinfo=None) - ends) < dt.timedelta(seconds=1)
    caller = Callers(ours, None).authenticate(SECRET)
    assert (caller.user_id, caller.role) == ("lea", "proxy_admin_viewer")
    assert Callers(ours, None).authenticate("sk-before-the-last-rotation").user_id == "lea"


ROUTES = "it may use some routes only"
SPENT = "its budget is spent"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"allowed_routes": ["/key/info"]}, ROUTES),
        ({"allowed_routes": ["info_routes"]}, ROUTES),
        ({"allowed_routes": ["management_routes"]}, ROUTES),
        ({"team_id": "litellm-dashboard"}, "console"),
        ({"team_id": "gone"}, "team does not exist"),
        ({"expires": dt.datetime(2026, 1, 1)}, "expired"),
        ({"token": "not-a-hash"}, "no SHA-256"),
    ],
    ids=str,
)
def test_a_key_that_would_gain_rights_is_left(litellm, ours, run, row, why):
    litellm.key(SECRET, **row) if "token" not in row else litellm.add(
        "LiteLLM_VerificationToken", **row
    )
    [told] = run().why("skipped")
    assert why in told
    assert found(ours, Key) == []


@pytest.mark.parametrize(
    ("row", "team", "user"),
    [
        ({"blocked": True}, {}, {}),
        ({"max_budget": 1.0, "spend": 1.5}, {}, {}),
        ({"budget_id": "b", "spend": 7.0}, {}, {}),
        ({"team_id": "t"}, {"blocked": True}, {}),
        ({"team_id": "t"}, {"max_budget": 2.0, "spend": 2.0}, {}),
        ({"user_id": "lea"}, {}, {"max_budget": 3.0, "spend": 3.0}),
    ],
    ids=str,
)
def test_a_key_that_was_refused_there_is_refused_here(litellm, ours, run, row, team, user):
    litellm.add("LiteLLM_BudgetTable", budget_id="b", max_budget=5.0)
    litellm.add("LiteLLM_TeamTable", team_id="t", models=[], **team)
    litellm.user("lea", **user)
    litellm.key(SECRET, **row)
    run()
    assert the_key(ours).blocked


@pytest.mark.parametrize(
    ("row", "team", "user", "models"),
    [
        (["mini"], None, [], ["mini"]),
        ([], ["mini"], [], ["mini"]),
        (["all-team-models"], ["mini"], [], ["mini"]),
        (["mini", "gpt-4o"], ["mini"], [], ["mini"]),
        (["gpt-4o"], ["mini"], [], ["no-default-models"]),
        (["gpt-4o"], ["gpt-*"], [], ["gpt-4o"]),
        ([], None, ["no-default-models"], ["no-default-models"]),
        (["gpt-4o"], None, ["no-default-models"], ["no-default-models"]),
    ],
)
def test_a_key_may_use_what_its_team_and_itself_allow(litellm, ours, run, row, team, user, models):
    more = {}
    if team is not None:
        litellm.add("LiteLLM_TeamTable", team_id="t", models=team)
        more["team_id"] = "t"
    litellm.user("lea", models=user)
    litellm.key(SECRET, user_id="lea", models=row, **more)
    run()
    assert the_key(ours).models == models


def test_who_may_nothing_alone_may_what_his_teams_may(litellm, ours, run):
    litellm.add("LiteLLM_TeamTable", team_id="t", models=["mini"])
    litellm.user("lea", models=["no-default-models"], teams=["t"])
    litellm.user("max", models=["no-default-models"])
    run()
    models = {user.user_id: user.models for user in found(ours, User)}
    assert (models["lea"], models["max"]) == (["mini"], ["no-default-models"])


def test_two_that_cannot_both_be_here(litellm, ours, run):
    litellm.user("Lea", user_email="a@x.org", created_at=past(days=2))
    litellm.user("lea", created_at=past(days=1))
    litellm.user("max", user_email="A@x.org", created_at=past(days=1))
    litellm.user("team:t", user_role="proxy_admin")
    litellm.add("LiteLLM_TeamTable", team_id="t", models=[])
    litellm.key("sk-1" * 8, user_id="lea")
    litellm.key("sk-2" * 8, user_id="max", key_alias="same")
    litellm.key("sk-3" * 8, user_id="max", key_alias="same")
    told = run()
    assert sum("letter case" in why for why in told.why("skipped")) == 2
    assert sum("e-mail is another" in why for why in told.why("noted")) == 1
    users = {user.user_id: user for user in found(ours, User)}
    assert set(users) == {"Lea", "max", "team:t"}
    assert (users["max"].email, users["team:t"].role) == (None, "internal_user")
    assert {key.alias for key in found(ours, Key)} == {"same", None}


def test_default_user_id_is_nobody_s_way_to_the_master_key(litellm, ours, run):
    litellm.user("default_user_id", user_role="proxy_admin")
    litellm.key(SECRET, user_id="default_user_id")
    run()
    assert Callers(ours, "sk-master").authenticate(SECRET).user_id == "litellm-default-user"


def test_a_deployment_is_found_by_the_file_that_litellm_ran_with(litellm, ours, run):
    """Its hash has the credentials in it, which have changed since."""
    told = {"bytes": 3, "filename": "a", "purpose": "user_data"}
    litellm.user("lea")
    other = deployment_id("mini", {"model": "gpt-4o-mini", "api_key": "sk-rotated"})
    litellm.file({FIRST: "file-1", "second": "file-2"}, ["gpt-4o"], told, created_by="lea")
    litellm.file({other: "file-3"}, ["mini"], told, created_by="lea")
    first = run()
    [why] = first.why("skipped")
    assert other in why and "--litellm-config" in why and "--deployment" in why
    assert {copy.deployment_file_id for copy in found(ours, Copy)} == {"file-1", "file-2"}

    before = json.loads(json.dumps(CONFIG).replace("sk-3", "sk-rotated"))
    assert run(config=before).report.is_whole
    assert len(found(ours, File)) == 2
    assert {copy.model_name for copy in found(ours, Copy)} == {"gpt-4o", "mini"}


def test_a_deployment_can_be_said(litellm, ours, run):
    told = {"bytes": 3, "filename": "a", "purpose": "user_data"}
    litellm.user("lea")
    litellm.file({"unknown": "file-1"}, ["mini"], told, created_by="lea")
    assert run(said={"unknown": "mini"}).report.is_whole
    with pytest.raises(OperationRefused, match="2 deployments are called so"):
        run(said={"unknown": "gpt-4o"})


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"created_by": None}, "belongs to nobody"),
        ({"created_by": "somebody-who-left"}, "does not exist any more"),
        ({"created_by": "key:" + "0" * 64}, "does not exist any more"),
        ({"created_by": "lea", "at": {}, "storage_backend": "azure_storage"}, "azure_storage"),
        ({"created_by": "lea", "unified_id": encoded("litellm_proxy:passthrough;x")}, "kind"),
        ({"created_by": "lea", "at": {"second": "../../secret"}}, "no deployment of that"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_taken_says_why(litellm, ours, run, row, why):
    litellm.user("lea")
    at = row.pop("at", {"second": "file-1"})
    litellm.file(at, ["gpt-4o"], {"bytes": 1, "purpose": "batch"}, **row)
    [told] = run().why("skipped")
    assert why in told
    assert found(ours, File) == []


def test_a_file_of_a_key_without_user_is_that_key_s(litellm, ours, run):
    token = litellm.key(SECRET)
    litellm.file({"second": "file-1"}, ["gpt-4o"], None, created_by=f"key:{token}")
    assert run().report.is_whole
    [file] = found(ours, File)
    assert file.owner == the_key(ours).owner == f"key:{token}"
    assert (file.purpose, file.filename) == ("batch_output", "file-1")


def test_a_job_that_cannot_be_taken_says_why(litellm, ours, run):
    litellm.user("lea")
    raw = {"id": "batch_1", "status": "completed", "created_at": 1}
    litellm.object("batch", "batch_1", "batch_1", raw, created_by="lea")
    by_name = ids.encode_batch("batch_2", "gpt-4o")
    litellm.object("batch", by_name, by_name, {**raw, "id": by_name}, created_by="lea")
    litellm.object("response", "resp_1", "resp_1", {"id": "resp_1"}, created_by="lea")
    told = sorted(run().why("skipped"))
    assert len(told) == 3
    assert "2 deployments" in " ".join(told) and "files_settings" in " ".join(told)
    assert found(ours, Job) == []


def test_nothing_is_written_to_litellm_s_database_and_nothing_else_is_taken_for_one(
    litellm, ours, run
):
    with source.opened(litellm.url) as rows, pytest.raises(Exception, match="read-only"):
        from sqlalchemy import text

        rows._connection.execute(text('DELETE FROM "LiteLLM_UserTable"'))
    with (
        inside.scratch_postgres() as empty,
        pytest.raises(OperationRefused, match="schema"),
        source.opened(empty),
    ):
        pass
    with pytest.raises(OperationRefused, match="PostgreSQL"), source.opened("sqlite:///x.db"):
        pass
    # Prisma's own words in the address are no trouble, and an old version has fewer columns.
    litellm.change('ALTER TABLE "LiteLLM_VerificationToken" DROP COLUMN allowed_routes')
    litellm.change('DROP TABLE "LiteLLM_DeprecatedVerificationToken"')
    litellm.key(SECRET)
    litellm.url += "&connection_limit=100&pgbouncer=true"
    assert run().report.is_whole


def test_many_rows_are_read_some_hundred_at_a_time(litellm, ours, run):
    litellm.change(
        """INSERT INTO "LiteLLM_VerificationToken" (token, key_name, models, user_id)
        SELECT encode(sha256(n::text::bytea), 'hex'), 'sk-...abcd', '{}', 'user-' || (n % 700)
        FROM generate_series(1, 1700) AS n"""
    )
    writes: list[int] = []

    @event.listens_for(ours.engine, "before_cursor_execute")
    def on_write(_c: Any, _u: Any, statement: str, given: Any, _x: Any, many: bool) -> None:
        if many and statement.startswith("INSERT INTO keys"):
            writes.append(len(given))

    report = run().report
    assert report.counts["key", "taken"] == 1700 and report.counts["user", "taken"] == 700
    assert sum(writes) == 1700 and max(writes) <= 500
    again = run().report
    assert again.counts["key", "here"] == 1700 and again.is_whole
