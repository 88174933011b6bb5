"""Users and keys without HTTP: who is let in, what is inherited, what is refused."""

import datetime as dt
import hashlib

import pytest
from sqlalchemy import select

from app.db.tables import File, Key, User
from app.errors import Conflict, InvalidRequest, NotAuthenticated, NotFound, NotPermitted
from app.services.access import Access
from app.services.callers import Caller, Role, operator
from app.settings import RetiringKey
from tests.access_builders import (
    MASTER_KEY,
    add_file,
    everything,
    issue,
    sign_in,
    statements,
)


@pytest.fixture
def access(database):
    return Access(database, MASTER_KEY)


def _in(**duration):
    return dt.datetime.now(dt.UTC) + dt.timedelta(**duration)


def _move_end(database, token, **values):
    with database.write() as session:
        key = session.scalars(select(Key).where(Key.token == token)).one()
        for name, value in values.items():
            setattr(key, name, value)


def _owner_of(database, file_id):
    with database.read() as session:
        return session.get(File, file_id).owner


# Who is let in


def test_the_master_key_is_a_proxy_admin(access):
    caller = access.authenticate(MASTER_KEY)
    assert (caller.owner, caller.user_id, caller.key_id) == ("master", "default_user_id", None)
    assert caller.is_admin and caller.sees_everything and caller.may_write


def test_without_a_master_key_nobody_is_it(database):
    for secret in ("", "None", "sk-"):
        with pytest.raises(NotAuthenticated):
            Access(database, None).authenticate(secret)


def test_a_retiring_master_key_works_until_its_end_and_owns_the_same(database):
    old = "sk-master-of-before"
    for until, works in ((_in(hours=1), True), (_in(seconds=-1), False)):
        access = Access(
            database,
            MASTER_KEY,
            retiring_master_keys=[RetiringKey(hashlib.sha256(old.encode()).hexdigest(), until)],
        )
        if works:
            caller = access.authenticate(old)
            assert (caller.owner, caller.is_admin, caller.expires_at) == ("master", True, until)
            assert caller.owner == access.authenticate(MASTER_KEY).owner
        else:
            with pytest.raises(NotAuthenticated):
                access.authenticate(old)


def test_a_users_key_owns_by_its_user(access):
    secret = issue(access, "alice", user={"models": ["a"]})
    caller = access.authenticate(secret)
    assert (caller.owner, caller.user_id, caller.display_name) == ("user:alice", "alice", "alice")
    assert caller.key_hash == hashlib.sha256(secret.encode()).hexdigest()
    assert (caller.key_models, caller.user_models) == ((), ("a",))
    assert not caller.is_admin and not caller.sees_everything and caller.may_write


def test_keys_without_user_own_by_their_own_hash(access):
    one, other = sign_in(access, None), sign_in(access, None)
    assert one.owner == f"key:{one.key_hash}"
    assert one.owner != other.owner
    assert one.user_id is None
    assert one.display_name.startswith("key sk-...")


@pytest.mark.parametrize(
    "secret",
    ["sk-unknown", "", "' OR 1=1--", '"; DROP TABLE keys;', "sk-\x00", "sk-" + "a" * 1_000_000,
     "sk-ü", "sk-\ud800", "0" * 64],
    ids=range(9),
)  # fmt: skip
def test_an_unknown_secret_is_refused_and_changes_nothing(access, database, secret):
    issue(access)
    before = everything(database)
    with pytest.raises(NotAuthenticated) as refused:
        access.authenticate(secret)
    assert refused.value.message == "the API key is not valid"
    assert everything(database) == before


def test_a_stored_hash_is_no_secret(access):
    caller = sign_in(access)
    with pytest.raises(NotAuthenticated):
        access.authenticate(caller.key_hash)
    with pytest.raises(NotAuthenticated):
        access.authenticate(f"sk-{caller.key_hash}")


def test_a_blocked_key_an_expired_one_and_a_blocked_user_are_refused(access, database):
    blocked = issue(access, "a")
    access.block_key(operator(), blocked)
    expired = issue(access, "b", key={"expires_at": _in(hours=1)})
    caller = access.authenticate(expired)
    _move_end(database, caller.key_hash, expires_at=_in(seconds=-1))
    user_blocked = issue(access, "c")
    access.update_user(operator(), "c", {"blocked": True})
    for secret, word in ((blocked, "blocked"), (expired, "expired"), (user_blocked, "user")):
        with pytest.raises(NotAuthenticated, match=word) as refused:
            access.authenticate(secret)
        assert secret not in refused.value.message


def test_every_process_sees_a_block_at_once(access, database):
    secret = issue(access)
    other_process = Access(database, MASTER_KEY)
    other_process.authenticate(secret)
    access.block_key(operator(), secret)
    with pytest.raises(NotAuthenticated):
        other_process.authenticate(secret)
    access.unblock_key(operator(), secret)
    assert other_process.authenticate(secret).user_id == "alice"


def test_a_key_is_looked_up_in_one_statement(access, database):
    secret = issue(access)
    seen = statements(database)
    access.authenticate(secret)
    access.authenticate(MASTER_KEY)
    assert len(seen) == 1


def test_a_key_and_the_file_that_is_asked_for_are_found_in_one_statement(access, database):
    secret, file_uuid = issue(access), add_file(database, "user:a")
    seen = statements(database)
    caller, found = access.authenticate_beside(secret, file_uuid)
    assert len(seen) == 1
    assert caller == access.authenticate(secret)
    assert found is not None and found[0].id == file_uuid
    assert access.authenticate_beside(secret, "f" * 36) == (caller, None)
    assert access.authenticate_beside(MASTER_KEY, file_uuid)[1] is None
    with pytest.raises(NotAuthenticated):
        access.authenticate_beside("sk-" + "f" * 20, file_uuid)


# Which models


@pytest.mark.parametrize(
    ("key_models", "user_models", "name", "qualified", "allowed"),
    [
        ((), (), "gpt", (), True),
        (("gpt",), (), "gpt", (), True),
        (("gpt",), (), "gpt-4", (), False),
        (("gpt",), ("claude",), "gpt", (), False),
        (("gpt", "claude"), ("claude",), "claude", (), True),
        (("*",), ("all-proxy-models",), "gpt", (), True),
        (("openai/*",), (), "openai/gpt", (), True),
        (("openai/*",), (), "gpt", (), False),
        (("openai/*",), (), "gpt", ("openai/a", "openai/b"), True),
        (("openai/*",), (), "gpt", ("openai/a", "azure/b"), False),
        (("openai/a", "azure/b"), (), "gpt", ("openai/a", "azure/b"), True),
        ((), ("openai/*",), "gpt", ("openai/a",), True),
        (("gpt-?",), (), "gpt-4", (), False),
        (("gpt-[45]",), (), "gpt-4", (), False),
        (("GPT",), (), "gpt", (), False),
    ],
)
def test_key_and_user_must_both_allow_a_model(key_models, user_models, name, qualified, allowed):
    caller = Caller("user:a", "a", "", "1", Role.INTERNAL_USER, key_models, user_models)
    assert caller.may_use(name, iter(qualified)) is allowed


def test_an_administrator_may_use_everything():
    caller = Caller("user:a", "a", "", "1", Role.PROXY_ADMIN, ("gpt",), ("gpt",))
    assert caller.may_use("claude")


# Users


@pytest.mark.parametrize("user_id", ["alice", "ALICE", "aLiCe"])
def test_a_user_id_exists_once_in_any_letter_case(access, database, user_id):
    issue(access, "alice")
    before = everything(database)
    with pytest.raises(Conflict) as refused:
        access.new_user(operator(), user_id, {}, {})
    assert refused.value.param == "user_id"
    assert everything(database) == before


def test_an_email_exists_once_in_any_letter_case(access, database):
    issue(access, "alice", user={"email": "Alice@Example.org"})
    issue(access, "bob")
    before = everything(database)
    with pytest.raises(Conflict) as refused:
        access.new_user(operator(), "carol", {"email": "alice@example.ORG"}, {})
    assert refused.value.param == "user_email"
    with pytest.raises(Conflict):
        access.update_user(operator(), "bob", {"email": "ALICE@example.org"})
    assert everything(database) == before
    user, _ = access.user_info(operator(), "alice")
    assert user["user_email"] == "Alice@Example.org"


def test_the_masters_user_id_cannot_be_made(access):
    for name in ("default_user_id", "Default_User_ID"):
        with pytest.raises(InvalidRequest, match="reserved"):
            access.new_user(operator(), name, {}, None)
        with pytest.raises(InvalidRequest, match="reserved"):
            access.generate_key(operator(), {"user_id": name})


def test_deleting_a_user_kills_the_keys_and_nobody_inherits_the_files(access, database):
    secret = issue(access, "alice")
    file_id = add_file(database, "user:alice")
    deleted = access.delete_users(operator(), ["alice"])
    assert (deleted.user_ids, deleted.keys, deleted.file_ids) == (("alice",), 1, ())
    with pytest.raises(NotAuthenticated):
        access.authenticate(secret)
    again = sign_in(access, "alice")
    assert _owner_of(database, file_id).startswith("deleted-user:alice:")
    assert _owner_of(database, file_id) != again.owner


def test_a_deleted_users_files_can_be_handed_on(access, database):
    issue(access, "alice")
    issue(access, "bob")
    file_id = add_file(database, "user:alice")
    access.delete_users(operator(), ["alice"], "transfer", "bob")
    assert _owner_of(database, file_id) == "user:bob"


def test_a_deleted_users_files_can_go_too(database):
    told: list[str] = []

    def hook(ids):
        # The hook runs after the commit: it can see what was decided, and write itself.
        with database.write() as session:
            told.extend(session.get(File, file_id).state for file_id in ids)

    access = Access(database, MASTER_KEY, hook)
    issue(access, "alice")
    ready, gone = add_file(database, "user:alice"), add_file(database, "user:alice", "deleted")
    other = add_file(database, "user:bob")
    deleted = access.delete_users(operator(), ["alice"], "delete")
    assert deleted.file_ids == (ready,)
    assert told == ["deleting"]
    assert _owner_of(database, gone).startswith("deleted-user:alice:")
    assert _owner_of(database, other) == "user:bob"


@pytest.mark.parametrize(
    ("ids", "files", "heir", "error"),
    [
        (["alice", "nobody"], "keep", None, NotFound),
        (["alice"], "transfer", None, InvalidRequest),
        (["alice"], "keep", "bob", InvalidRequest),
        (["alice"], "transfer", "alice", InvalidRequest),
        (["alice"], "transfer", "nobody", NotFound),
    ],
)
def test_a_refused_deletion_changes_nothing(access, database, ids, files, heir, error):
    issue(access, "alice")
    issue(access, "bob")
    file_id = add_file(database, "user:alice")
    before = everything(database)
    with pytest.raises(error):
        access.delete_users(operator(), ids, files, heir)
    assert everything(database) == before
    assert _owner_of(database, file_id) == "user:alice"


def test_user_info_shows_a_bounded_number_of_keys(access):
    caller = sign_in(access)
    for _ in range(101):
        access.generate_key(operator(), {"user_id": "alice"})
    _, keys = access.user_info(caller)
    assert len(keys) == 100
    assert all("key" not in key for key in keys)


def test_people_see_only_themselves(access):
    alice, service = sign_in(access, "alice"), sign_in(access, None)
    sign_in(access, "bob")
    assert access.list_users(alice)[0][0]["user_id"] == "alice"
    assert access.list_users(alice)[1] == 1
    assert access.list_users(alice, user_id="bob") == ([], 0)
    assert access.list_users(service) == ([], 0)
    for caller in (alice, service):
        with pytest.raises(NotPermitted):
            access.user_info(caller, "bob")
    with pytest.raises(NotFound):
        access.user_info(service)


# Keys


def test_a_key_for_an_unknown_user_makes_the_user(access, database):
    access.generate_key(operator(), {"user_id": "new"})
    with database.read() as session:
        assert session.get(User, "new").role == "internal_user"


def test_a_key_for_a_user_in_another_letter_case_is_a_conflict(access):
    issue(access, "alice")
    with pytest.raises(Conflict, match="letter case"):
        access.generate_key(operator(), {"user_id": "Alice"})


def test_a_users_own_keys_inherit_what_is_left_out(access):
    end = _in(days=1)
    alice = sign_in(access, key={"models": ["gpt", "openai/*"], "expires_at": end})
    made = access.authenticate(access.generate_key(alice, {})["key"])
    assert made.owner == "user:alice"
    assert made.key_models == ("gpt", "openai/*")
    assert made.expires_at == end


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"models": ["gpt"]}, True),
        ({"models": ["openai/a"]}, True),
        ({"models": ["openai/a*"]}, True),
        ({"models": ["claude"]}, False),
        ({"models": ["gpt", "claude"]}, False),
        ({"models": ["gpt*"]}, False),
        ({"models": []}, False),
        ({"models": ["*"]}, False),
        ({"models": ["gpt", "all-proxy-models"]}, False),
        ({"models": ["beyond-the-user"]}, False),
        ({"user_id": "alice"}, True),
        ({"user_id": None}, True),
        ({"user_id": "bob"}, False),
        ({"user_id": "nobody-yet"}, False),
        ({"expires_at": None}, False),
        ({"expires_at": "later"}, False),
        ({"expires_at": "earlier"}, True),
    ],
    ids=str,
)
def test_a_users_own_key_may_no_more_than_the_calling_one(access, database, fields, allowed):
    alice = sign_in(
        access,
        user={"models": ["gpt", "openai/*", "claude"]},
        key={"models": ["gpt", "openai/*", "beyond-the-user"], "expires_at": _in(days=1)},
    )
    issue(access, "bob")
    ends = {"later": _in(days=2), "earlier": _in(hours=1)}
    fields = {name: ends.get(value, value) if isinstance(value, str) and name == "expires_at"
              else value for name, value in fields.items()}  # fmt: skip
    before = everything(database)
    if allowed:
        assert access.generate_key(alice, fields)["user_id"] == "alice"
    else:
        with pytest.raises(NotPermitted):
            access.generate_key(alice, fields)
        assert everything(database) == before


def test_a_key_without_user_makes_no_keys(access):
    with pytest.raises(NotPermitted):
        access.generate_key(sign_in(access, None), {})


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({"alias": "mine"}, True),
        ({"metadata": {"a": 1}}, True),
        ({"models": ["gpt"]}, True),
        ({"models": ["gpt", "claude"]}, False),
        ({"models": []}, False),
        ({"expires_at": None}, False),
        ({"user_id": "bob"}, False),
        ({"user_id": None}, False),
        ({"user_id": "alice"}, True),
        ({"blocked": True}, True),
        ({"blocked": False}, True),
    ],
    ids=str,
)
def test_a_user_narrows_his_keys_and_widens_none(access, database, changes, allowed):
    fields = {"models": ["gpt", "gemini"], "expires_at": _in(days=1)}
    secret = issue(access, key=fields)
    alice = access.authenticate(secret)
    issue(access, "bob")
    before = everything(database)
    if allowed:
        access.update_key(alice, secret, changes)
    else:
        with pytest.raises(NotPermitted):
            access.update_key(alice, secret, changes)
        assert everything(database) == before


def test_a_user_does_not_unblock_what_is_blocked(access, database):
    alice = sign_in(access)
    other = access.generate_key(alice, {})["key"]
    access.block_key(operator(), other)
    before = everything(database)
    with pytest.raises(NotPermitted):
        access.update_key(alice, other, {"blocked": False})
    with pytest.raises(NotPermitted):
        access.unblock_key(alice, other)
    assert everything(database) == before


def test_renewal_keeps_everything_but_the_secret(access):
    old = issue(access, key={"alias": "prod", "models": ["gpt"], "metadata": {"a": 1}})
    before = access.authenticate(old)
    info = access.key_info(operator(), "prod")
    renewed = access.regenerate_key(before, old)
    after = access.authenticate(renewed["key"])
    changing = {"key", "token", "key_name", "updated_at"}
    assert {k: v for k, v in renewed.items() if k not in changing} == {
        k: v for k, v in info.items() if k not in changing
    }
    assert (after.key_id, after.owner) == (before.key_id, before.owner)
    with pytest.raises(NotAuthenticated):
        access.authenticate(old)


def test_a_key_without_user_owns_the_same_after_renewal(access):
    old = issue(access, None)
    owner = access.authenticate(old).owner
    new = access.regenerate_key(operator(), old)["key"]
    assert access.authenticate(new).owner == owner


def test_the_old_secret_works_in_its_grace_period_and_no_longer(access, database):
    old = issue(access)
    end = _in(hours=1)
    new = access.regenerate_key(operator(), old, end)["key"]
    assert access.authenticate(new).expires_at is None
    in_grace = access.authenticate(old)
    assert (in_grace.user_id, in_grace.expires_at) == ("alice", end)
    # What it makes does not outlive it, and it cannot take the key over.
    assert access.generate_key(in_grace, {})["expires"] == end.isoformat()
    with pytest.raises(NotPermitted):
        access.regenerate_key(in_grace, new)
    _move_end(database, access.authenticate(new).key_hash, previous_expires_at=_in(seconds=-1))
    with pytest.raises(NotAuthenticated):
        access.authenticate(old)


def test_a_second_renewal_ends_the_first_ones_grace(access):
    first = issue(access)
    second = access.regenerate_key(operator(), first, _in(hours=1))["key"]
    access.regenerate_key(operator(), second, _in(hours=1))
    access.authenticate(second)
    with pytest.raises(NotAuthenticated):
        access.authenticate(first)


def test_a_block_also_ends_a_grace_period(access):
    old = issue(access)
    new = access.regenerate_key(operator(), old, _in(hours=1))["key"]
    access.block_key(operator(), new)
    with pytest.raises(NotAuthenticated):
        access.authenticate(old)


def test_a_narrow_key_cannot_renew_a_wider_one(access, database):
    wide = issue(access)
    alice = access.authenticate(wide)
    narrow = access.authenticate(access.generate_key(alice, {"models": ["gpt"]})["key"])
    short = access.authenticate(access.generate_key(alice, {"expires_at": _in(hours=1)})["key"])
    before = everything(database)
    for caller in (narrow, short):
        with pytest.raises(NotPermitted):
            access.regenerate_key(caller, wide)
    assert everything(database) == before
    access.regenerate_key(narrow, narrow.key_hash)
    access.regenerate_key(alice, short.key_hash)


def test_a_key_is_named_by_secret_hash_or_alias(access):
    secret = issue(access, key={"alias": "prod"})
    token = hashlib.sha256(secret.encode()).hexdigest()
    for name in (secret, token, "prod"):
        assert access.key_info(operator(), name)["token"] == token
    assert access.key_info(operator(), "prod", alias_only=True)["token"] == token
    with pytest.raises(NotFound):
        access.key_info(operator(), secret, alias_only=True)


def test_an_alias_is_unique_for_its_owner_only(access, database):
    for user_id in ("alice", "bob", None):
        issue(access, user_id, key={"alias": "prod"})
        before = everything(database)
        with pytest.raises(Conflict) as refused:
            access.generate_key(operator(), {"user_id": user_id, "alias": "prod"})
        assert refused.value.param == "key_alias"
        assert everything(database) == before
    other = access.generate_key(operator(), {"user_id": "alice"})["token"]
    with pytest.raises(Conflict):
        access.update_key(operator(), other, {"alias": "prod"})


def test_an_alias_of_several_keys_names_none_except_to_its_owner(access, database):
    alice = sign_in(access, "alice", key={"alias": "prod"})
    issue(access, "bob", key={"alias": "prod"})
    before = everything(database)
    with pytest.raises(InvalidRequest):
        access.delete_keys(operator(), ["prod"])
    assert everything(database) == before
    assert access.key_info(alice, "prod")["token"] == alice.key_hash


def test_other_peoples_keys_are_not_touched(access, database):
    secret = issue(access, "bob", key={"alias": "bobs"})
    token = hashlib.sha256(secret.encode()).hexdigest()
    before = everything(database)
    for caller in (sign_in(access, "alice"), sign_in(access, None)):
        before = everything(database)
        for name in (secret, token, "bobs"):
            for act in (
                access.key_info,
                lambda c, n: access.update_key(c, n, {"alias": "taken"}),
                lambda c, n: access.delete_keys(c, [n]),
                lambda c, n: access.delete_keys(c, [c.key_hash, n]),
                access.block_key,
                access.regenerate_key,
            ):
                with pytest.raises(NotPermitted):
                    act(caller, name)
    assert everything(database) == before


def test_viewers_change_nothing(access, database):
    for role in (Role.PROXY_ADMIN_VIEWER, Role.INTERNAL_USER_VIEWER):
        viewer = sign_in(access, role.value, role=role)
        before = everything(database)
        for act in (
            lambda v: access.new_user(v, "x", {}, {}),
            lambda v: access.update_user(v, v.user_id, {"role": "proxy_admin"}),
            lambda v: access.delete_users(v, [v.user_id]),
            lambda v: access.generate_key(v, {}),
            lambda v: access.update_key(v, v.key_hash, {"alias": "x"}),
            lambda v: access.delete_keys(v, [v.key_hash]),
            lambda v: access.block_key(v, v.key_hash),
            lambda v: access.unblock_key(v, v.key_hash),
            lambda v: access.regenerate_key(v, v.key_hash),
        ):
            with pytest.raises(NotPermitted):
                act(viewer)
        assert everything(database) == before


def test_an_administrator_gives_a_key_to_somebody_else(access):
    secret = issue(access, "alice", key={"alias": "prod"})
    access.update_key(operator(), secret, {"user_id": "bob"})
    assert access.authenticate(secret).owner == "user:bob"
    access.update_key(operator(), secret, {"user_id": None})
    assert access.authenticate(secret).owner.startswith("key:")
    # The alias went with it: alice's is free again.
    access.generate_key(operator(), {"user_id": "alice", "alias": "prod"})


def test_a_list_is_a_list_of_ones_own_keys(access):
    alice, service = sign_in(access, "alice"), sign_in(access, None)
    issue(access, "bob")
    assert [key["token"] for key in access.list_keys(alice)[0]] == [alice.key_hash]
    assert [key["token"] for key in access.list_keys(service)[0]] == [service.key_hash]
    assert access.list_keys(operator())[1] == 3
    assert access.list_keys(operator(), user_id="bob")[1] == 1
    for caller in (alice, service):
        with pytest.raises(NotPermitted):
            access.list_keys(caller, user_id="bob")


def test_a_list_takes_few_statements(access, database):
    for number in range(30):
        access.generate_key(operator(), {"user_id": f"user-{number}"})
    seen = statements(database)
    access.list_keys(operator(), page=2, size=10)
    access.list_users(operator(), page=2, size=10)
    access.user_info(operator(), "user-1")
    assert len(seen) == 6
