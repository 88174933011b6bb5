"""Questions about users and keys: which indexes they use, and what they skip."""

import datetime as dt

import pytest

from app.db import access as db
from app.db.tables import Key, User, now
from tests.access_builders import add_file, scratch_database
from tests.db.plans import plans


def _key(number, moment, user_id=None, **more):
    fields = {
        "id": f"id-{number:03}",
        "token": f"{number:064}",
        "key_name": "sk-...abcd",
        "alias": f"alias-{number}",
        "alias_scope": user_id or "",
        "user_id": user_id,
        "owner": f"key:{number:064}",
        "models": [],
        "metadata_": {},
        "blocked": False,
        "created_at": moment,
        "updated_at": moment,
        "created_by": "default_user_id",
    }
    return Key(**{**fields, **more})


def _user(user_id, moment):
    return User(
        user_id=user_id,
        id_folded=user_id.casefold(),
        role="internal_user",
        models=["m"],
        metadata_={},
        blocked=False,
        created_at=moment,
        updated_at=moment,
    )


def _fill(database):
    with database.write() as session:
        session.add(_user("alice", now()))
        session.flush()
        # The same moment, so that the order must come from the id as well.
        session.add_all(_key(n, now(), "alice" if n % 2 else None) for n in range(25))


def test_pages_are_complete_and_without_repetition(database):
    _fill(database)
    with database.read() as session:
        pages = [db.page_of_keys(session, db.KeyFilter(), offset=o, limit=10) for o in (0, 10, 20)]
    assert [len(rows) for rows, _ in pages] == [10, 10, 5]
    assert {total for _, total in pages} == {25}
    ids = [row.id for rows, _ in pages for row in rows]
    assert len(set(ids)) == 25


def test_a_page_of_one_user_counts_his_keys_only(database):
    _fill(database)
    with database.read() as session:
        rows, total = db.page_of_keys(session, db.KeyFilter(user_id="alice"), offset=10, limit=10)
    assert total == 12
    assert {row.user_id for row in rows} == {"alice"}


def test_a_presented_token_brings_its_users_columns(database):
    _fill(database)
    with database.ask() as asking:
        with_user = db.presented(asking, f"{1:064}", now())
        without = db.presented(asking, f"{0:064}", now())
        unknown = db.presented(asking, "f" * 64, now())
    assert with_user is not None and without is not None
    assert (with_user.user_id, with_user.user_models) == ("alice", ["m"])
    assert (without.user_id, without.user_models) == (None, None)
    assert unknown is None


def test_a_previous_token_counts_until_its_end(database):
    moment = now()
    with database.write() as session:
        end = moment + dt.timedelta(minutes=1)
        session.add(_key(1, moment, previous_token="e" * 64, previous_expires_at=end))
    with database.ask() as asking:
        assert db.presented(asking, "e" * 64, moment) is not None
        assert db.presented(asking, "e" * 64, moment + dt.timedelta(minutes=2)) is None


def test_a_token_is_found_before_the_keys_that_have_it_as_alias(database):
    with database.write() as session:
        session.add(_user("alice", now()))
        session.add(_user("bob", now()))
        session.flush()
        session.add(_key(9, now()))
        for number, user_id in ((1, None), (2, "alice"), (3, "bob")):
            session.add(_key(number, now(), user_id, alias="same"))
    with database.read() as session:
        found = db.keys_called(session, [f"{9:064}"], "same", db.KeyFilter())
    assert found[0].id == "id-009"


def test_deleting_a_user_deletes_his_keys_and_no_others(database):
    _fill(database)
    with database.write() as session:
        assert db.delete_user(session, "alice") == 12
    with database.read() as session:
        assert db.page_of_keys(session, db.KeyFilter(), offset=0, limit=1)[1] == 13


def test_only_living_files_are_given_up(database):
    ready, uploading = add_file(database, "user:a"), add_file(database, "user:a", "uploading")
    for state in ("failed", "deleting", "deleted"):
        add_file(database, "user:a", state)
    add_file(database, "user:b")
    with database.write() as session:
        assert set(db.give_up_files(session, "user:a")) == {ready, uploading}
        assert db.give_up_files(session, "user:a") == []


QUESTIONS = {
    "presented": lambda a: db.presented(a, "0" * 64, now()),
    "presented beside a file": lambda a: db.presented_beside(a, "0" * 64, now(), "1"),
}
QUESTIONS_OF_OBJECTS = {
    "called": lambda s: db.keys_called(s, ["0" * 64], "alias", db.KeyFilter()),
    "page": lambda s: db.newest_keys(s, db.KeyFilter(), limit=10),
    "page of a user": lambda s: db.newest_keys(s, db.KeyFilter(user_id="alice"), limit=10),
    "users": lambda s: db.page_of_users(s, db.UserFilter(), offset=0, limit=10),
}


@pytest.mark.parametrize("question", [*QUESTIONS, *QUESTIONS_OF_OBJECTS])
def test_no_question_reads_a_whole_table(question):
    ask = {**QUESTIONS, **QUESTIONS_OF_OBJECTS}[question]
    with scratch_database("sqlite") as database:
        [*_, steps] = plans(database, ask, of_objects=question in QUESTIONS_OF_OBJECTS)
    assert any("INDEX" in step for step in steps)
    bare = [s for s in steps if s.startswith("SCAN") and "INDEX" not in s and "anon_1" not in s]
    assert not bare, steps
