"""The sweep: files past their time, contents without a row, uploads that a crash cut off."""

import datetime as dt

import pytest
from sqlalchemy import select, update

from app.db.tables import File, UploadSession, now
from app.errors import UpstreamError
from app.services.once import Once
from app.services.router import Selector
from app.services.sweeper import Sweeper
from app.services.uploads import Announced, Uploads
from app.spool import Spool
from tests.builders import make_deployment, make_upload
from tests.conftest import Gateway, make_gateway

CONTENT = b"content"
MODELS = (make_deployment("a-1", model_name="a"), make_deployment("b-1", model_name="b"))


@pytest.fixture
def gateway(database) -> Gateway:
    return make_gateway(database, MODELS, (), keep_content=True)


@pytest.fixture
def uploads(gateway) -> Uploads:
    return Uploads(
        gateway.settings, gateway.database, gateway.router, gateway.files, gateway.rooms.meter
    )


@pytest.fixture
def sweeper(gateway, uploads) -> Sweeper:
    return Sweeper(
        gateway.database,
        tuple(gateway.fakes.values()),
        copies=gateway.rooms.copies,
        uploads=uploads,
        kept=gateway.rooms.kept,
        spool=Spool(gateway.settings.data_dir / "spool"),
        meter=gateway.rooms.meter,
        once=Once(gateway.database),
    )


def states(gateway: Gateway) -> list[str]:
    with gateway.database.read() as session:
        return list(session.scalars(select(File.state)))


def kept(gateway: Gateway) -> list[str]:
    return [name for name, _ in gateway.rooms.kept.entries()]


def test_a_file_past_its_owners_time_goes_at_every_upstream(gateway, sweeper, alice):
    gateway.upload(alice, CONTENT, expires_after_seconds=3600)
    gateway.upload(alice, CONTENT)
    with gateway.database.write() as session:
        past = now() - dt.timedelta(seconds=1)
        session.execute(update(File).where(File.expires_at.is_not(None)).values(expires_at=past))
    assert sweeper.expired_files() == 1
    assert sorted(states(gateway)) == ["deleted", "ready"]
    assert [len(fake.stored) for fake in gateway.fakes.values()] == [1, 1]
    assert len(kept(gateway)) == 1


def test_a_content_that_no_row_speaks_of_goes_once_it_is_old(gateway, sweeper, alice):
    gateway.upload(alice, CONTENT)
    stray = "00000000-0000-4000-8000-000000000000"
    gateway.rooms.kept.put(stray, make_upload(b"stray"))
    sweeper.run()
    assert stray in kept(gateway), "it may be of an upload that is still running"
    sweeper.run(young_seconds=-1.0)
    assert len(kept(gateway)) == 1 and stray not in kept(gateway)
    blobs = gateway.settings.data_dir / "local" / "blobs"
    # No deployment is on this machine's disk, so no other provider sweeps there.
    assert len([path for path in blobs.rglob("*") if path.is_file()]) == 1


def test_one_steps_trouble_is_not_that_of_the_others(gateway, sweeper, alice, monkeypatch, caplog):
    gateway.upload(alice, CONTENT, expires_after_seconds=3600)
    with gateway.database.write() as session:
        session.execute(update(File).values(expires_at=now()))

    def broken(*_):
        raise UpstreamError("the disk is gone")

    monkeypatch.setattr(sweeper._kept, "entries", broken)
    sweeper.run()
    assert "sweep failed" in caplog.text
    assert states(gateway) == ["deleted"]


# Uploads in parts


def begun(uploads: Uploads, alice) -> str:
    announced = Announced("f.bin", "application/octet-stream", "user_data", len(CONTENT))
    made = uploads.create(alice, announced, Selector(target_model_names=("a",)))
    return made["id"].removeprefix("upload_")


def cut_off(gateway: Gateway, row_id: str, file_id: str | None) -> None:
    """What a crash in the middle of completing leaves, some time ago."""
    long_ago = now() - dt.timedelta(minutes=10)
    with gateway.database.write() as session:
        session.execute(
            update(UploadSession)
            .where(UploadSession.id == row_id)
            .values(status="completing", part_ids=["p"], file_id=file_id, updated_at=long_ago)
        )


def session_row(gateway: Gateway) -> UploadSession:
    with gateway.database.read() as session:
        return session.scalars(select(UploadSession)).one()


def test_an_upload_whose_file_was_made_is_completed(gateway, uploads, sweeper, alice):
    row_id = begun(uploads, alice)
    file_id = gateway.upload(alice, CONTENT, names=("a",))
    with gateway.database.read() as session:
        file_uuid = session.scalars(select(File.id)).one()
    cut_off(gateway, row_id, file_uuid)
    sweeper.run()
    row = session_row(gateway)
    assert (row.status, row.file_id) == ("completed", file_id)


def test_one_whose_file_was_not_may_be_completed_again(gateway, uploads, sweeper, alice):
    row_id = begun(uploads, alice)
    cut_off(gateway, row_id, "00000000-0000-4000-8000-000000000000")
    sweeper.run()
    row = session_row(gateway)
    assert (row.status, row.part_ids, row.file_id) == ("pending", [], None)


def test_one_whose_file_is_being_made_is_left_alone(gateway, uploads, sweeper, alice):
    row_id = begun(uploads, alice)
    gateway.upload(alice, CONTENT, names=("a",))
    with gateway.database.write() as session:
        session.execute(update(File).values(state="uploading"))
        file_uuid = session.scalars(select(File.id)).one()
    cut_off(gateway, row_id, file_uuid)
    sweeper.run()
    assert session_row(gateway).status == "completing"
