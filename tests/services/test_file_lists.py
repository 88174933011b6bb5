"""Lists: whole, in order, one's own, by each way of naming an account."""

import datetime as dt

import pytest
from sqlalchemy import update

from app import ids
from app.db.tables import File, now
from app.errors import InvalidRequest, ModelAccessDenied, NotPermitted, UnknownModel
from app.services.file_lists import ListQuery
from app.services.router import Selector
from tests.builders import make_upload
from tests.conftest import NO_HINTS, make_caller, make_gateway

START = dt.datetime(2026, 11, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def gateway(database):
    return make_gateway(database)


def walk(gateway, caller, selector=None, **query):
    """The ids of all pages, one after the other; every page must say of itself what is true."""
    after = None
    for _ in range(1000):
        found = gateway.lists.page(caller, ListQuery(after=after, **query), selector or Selector())
        names = [file["id"] for file in found["data"]]
        assert found["object"] == "list"
        assert (found["first_id"], found["last_id"]) == (
            (names[0], names[-1]) if names else (None, None)
        )
        assert names or not found["has_more"]
        assert len(names) <= query.get("limit", 10_000)
        yield from names
        if not found["has_more"]:
            return
        after = found["last_id"]
    raise AssertionError("the list has no end")


def many(gateway, database, owners, count, **way):
    """Files of several owners in turn, five at each moment; the ids by owner, oldest first."""
    made: dict[str, list[str]] = {owner.owner: [] for owner in owners}
    for _ in range(count):
        for owner in owners:
            made[owner.owner].append(gateway.upload(owner, **way))
    with database.write() as session:
        for owner in owners:
            for number, file_id in enumerate(made[owner.owner]):
                moment = START + dt.timedelta(microseconds=number // 5)
                session.execute(
                    update(File).where(File.public_id == file_id).values(created_at=moment)
                )
    return made


def in_order(database, file_ids):
    """The same ids, oldest first, as (created_at, id) has them."""
    with database.read() as session:
        found = session.query(File).filter(File.public_id.in_(file_ids)).all()
    return [file.public_id for file in sorted(found, key=lambda f: (f.created_at, f.id))]


def test_250_files_between_a_strangers_come_in_three_pages(memory, alice, bob):
    gateway = make_gateway(memory)
    made = many(gateway, memory, [alice, bob], 250, names=("b",))
    oldest_first = in_order(memory, made[alice.owner])
    pages: list[list[str]] = []
    after = None
    while not pages or after:
        found = gateway.lists.page(alice, ListQuery(limit=100, after=after), Selector())
        pages.append([file["id"] for file in found["data"]])
        after = found["last_id"] if found["has_more"] else None
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [file_id for page in pages for file_id in page] == oldest_first[::-1]
    assert list(walk(gateway, alice, order="asc", limit=99)) == oldest_first
    assert set(walk(gateway, bob)) == set(made[bob.owner])


@pytest.mark.parametrize("limit", [1, 3, 20, 21])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_files_of_one_moment_are_neither_lost_nor_doubled(gateway, database, alice, limit, order):
    made = many(gateway, database, [alice], 20, names=("b",))[alice.owner]
    expected = in_order(database, made)
    found = list(walk(gateway, alice, limit=limit, order=order))
    assert found == (expected if order == "asc" else expected[::-1])


def test_a_page_that_ends_exactly_has_no_more(gateway, database, alice):
    many(gateway, database, [alice], 4, names=("b",))
    for limit, has_more in ((3, True), (4, False), (5, False)):
        found = gateway.lists.page(alice, ListQuery(limit=limit), Selector())
        assert found["has_more"] is has_more


def test_an_empty_list(gateway, alice, nobody, root):
    for caller in (alice, nobody, root):
        assert gateway.lists.page(caller, ListQuery(), Selector()) == {
            "object": "list",
            "data": [],
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }


def test_keys_without_user_see_their_own_only(gateway):
    one, other = make_caller(None), make_caller(None)
    mine = gateway.upload(one)
    gateway.upload(other)
    assert list(walk(gateway, one)) == [mine]
    assert list(walk(gateway, make_caller(None))) == []


def test_a_list_asks_no_upstream(gateway, alice):
    gateway.upload(alice)
    before = gateway.calls()
    for selector in (
        Selector(),
        Selector(target_model_names=("a", "b")),
        Selector(model="a"),
        Selector(provider="openai"),
    ):
        list(walk(gateway, alice, selector))
    assert gateway.calls() == before


@pytest.mark.parametrize("how", ["deleted", "half deleted", "expired"])
def test_a_cursor_that_is_gone_still_says_where_it_stood(gateway, database, alice, how):
    made = in_order(database, many(gateway, database, [alice], 9, names=("b",))[alice.owner])
    if how == "deleted":
        gateway.files.delete(alice, made[4], NO_HINTS)
    else:
        changes = {"state": "deleting"} if how == "half deleted" else {"expires_at": now()}
        with database.write() as session:
            session.execute(update(File).where(File.public_id == made[4]).values(**changes))
    for query, expected in (
        (ListQuery(after=made[4], order="asc"), made[5:]),
        (ListQuery(after=made[4]), made[:4][::-1]),
    ):
        found = gateway.lists.page(alice, query, Selector())
        assert [file["id"] for file in found["data"]] == expected
    assert made[4] not in list(walk(gateway, alice))


@pytest.mark.parametrize("way", [{"names": ("b",)}, {"model": "b"}, {"provider": "openai"}])
def test_every_kind_of_id_is_a_cursor(gateway, database, alice, way):
    made = in_order(database, many(gateway, database, [alice], 5, **way)[alice.owner])
    assert list(walk(gateway, alice, limit=2, order="asc")) == made


def test_a_foreign_cursor_is_refused_like_an_unknown_one(gateway, alice, bob, viewer, root):
    foreign = [gateway.upload(bob, **way) for way in ({}, {"model": "b"}, {"provider": "openai"})]
    raw = gateway.raw_id("a-1")
    for after in (*foreign, raw, "file-unknown", "", "\x00", "x" * 5000, ids.encode_file("x", "b")):
        for caller in (alice, viewer, root):
            with pytest.raises(InvalidRequest) as refused:
                gateway.lists.page(caller, ListQuery(after=after), Selector())
            assert (refused.value.status, refused.value.param) == (400, "after")
            assert len(refused.value.message) < 300


def test_what_is_not_finished_or_not_there_any_more_is_not_listed(gateway, database, alice):
    shown = gateway.upload(alice)
    for changes in (
        {"state": "uploading"},
        {"state": "failed"},
        {"state": "deleting"},
        {"state": "deleted"},
        {"expires_at": now() - dt.timedelta(seconds=1)},
    ):
        hidden = gateway.upload(alice)
        with database.write() as session:
            session.execute(update(File).where(File.public_id == hidden).values(**changes))
    assert list(walk(gateway, alice)) == [shown]


# Filters


def test_lists_are_narrowed(gateway, alice):
    in_a = gateway.upload(alice, names=("a",), purpose="fine-tune")
    in_b = gateway.upload(alice, names=("b",))
    in_both = gateway.upload(alice, names=("a", "b"))
    encoded = gateway.upload(alice, model="b")
    raw = gateway.upload(alice, provider="openai", purpose="fine-tune")
    newest_first = [raw, encoded, in_both, in_b, in_a]
    for selector, query, expected in (
        (Selector(), {}, newest_first),
        (Selector(), {"purpose": "fine-tune"}, [raw, in_a]),
        (Selector(target_model_names=("a",)), {}, [in_both, in_a]),
        (Selector(target_model_names=("a",)), {"purpose": "fine-tune"}, [in_a]),
        (Selector(target_model_names=("a", "b")), {}, newest_first[1:]),
        (Selector(model="b"), {}, [encoded]),
        (Selector(model="a"), {}, []),
        (Selector(model="openai/up-b"), {}, [encoded]),
        (Selector(provider="openai"), {}, [raw]),
        (Selector(provider="openai"), {"purpose": "vision"}, []),
    ):
        assert list(walk(gateway, alice, selector, **query)) == expected


def test_a_list_obeys_the_keys_models(gateway, alice):
    narrow = make_caller("alice", key_models=["a"])
    for selector in (Selector(model="b"), Selector(target_model_names=("a", "b"))):
        with pytest.raises(ModelAccessDenied):
            gateway.lists.page(narrow, ListQuery(), selector)
    with pytest.raises(UnknownModel):
        gateway.lists.page(alice, ListQuery(), Selector(model="no"))
    # Without a selector they are the caller's own, whatever their models.
    mine = gateway.upload(alice, names=("b",))
    assert list(walk(gateway, narrow)) == [mine]


def test_defaults_for_uploads_do_not_narrow_a_list(database, alice):
    made = [make_gateway(database).upload(alice, names=(name,)) for name in ("a", "b")]
    gateway = make_gateway(database, default_target_model_names=("a",))
    assert list(walk(gateway, alice, order="asc")) == made


# Admins


def test_an_admin_names_a_user(gateway, alice, bob, root, viewer, nobody):
    mine = gateway.upload(alice)
    gateway.upload(bob)
    for caller in (root, viewer):
        assert list(walk(gateway, caller, user_id="alice")) == [mine]
        assert list(walk(gateway, caller, user_id="nobody")) == []
    for caller in (bob, nobody, alice):
        with pytest.raises(NotPermitted):
            gateway.lists.page(caller, ListQuery(user_id="alice"), Selector())


def test_an_admins_own_list_is_his_own(gateway, alice, root):
    gateway.upload(alice)
    own = gateway.upload(root)
    assert list(walk(gateway, root)) == [own]
    assert list(walk(gateway, root, user_id=root.user_id)) == [own]


@pytest.mark.parametrize(
    ("selector", "keys"),
    [(Selector(model="a"), ("a-1", "a-2")), (Selector(provider="openai"), ("openai-account",))],
)
def test_an_admin_sees_an_account_as_its_provider_does(gateway, alice, root, selector, keys):
    expected = []
    for number in range(23):
        fake = gateway.fakes[keys[number % len(keys)]]
        stored = fake.upload(make_upload(purpose="batch" if number % 2 else "vision"))
        # Three at a time in one second, in no order.
        moment = 1_800_000_000 + (number * 7) % 23 // 3
        fake.change(stored.id, created_at=moment)
        handed = ids.encode_file(stored.id, "a") if selector.model else stored.id
        expected.append((moment, handed, fake.stored[stored.id].purpose))
    expected.sort()
    for order in ("asc", "desc"):
        wanted = [name for _, name, _ in expected[:: 1 if order == "asc" else -1]]
        for limit in (1, 5, 23, 24):
            assert list(walk(gateway, root, selector, limit=limit, order=order)) == wanted
    batch = [name for _, name, purpose in expected if purpose == "batch"]
    assert list(walk(gateway, root, selector, purpose="batch", limit=2, order="asc")) == batch
    with pytest.raises(InvalidRequest) as refused:
        gateway.lists.page(root, ListQuery(after="file-unknown"), selector)
    assert refused.value.param == "after"
    # Everybody else: his own files of that account.
    assert list(walk(gateway, alice, selector)) == []


def test_two_deployments_of_one_account_show_a_file_once(gateway, root):
    stored = gateway.fakes["a-1"].upload(make_upload())
    gateway.fakes["a-2"].stored[stored.id] = stored
    assert list(walk(gateway, root, Selector(model="a"))) == [ids.encode_file(stored.id, "a")]


def test_an_admins_view_of_a_user_asks_no_upstream(gateway, alice, root):
    encoded = gateway.upload(alice, model="a")
    before = gateway.calls()
    assert list(walk(gateway, root, Selector(model="a"), user_id="alice")) == [encoded]
    assert gateway.calls() == before
