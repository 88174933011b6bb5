"""The generated master key: made once, kept private, announced once."""

import datetime as dt
import hashlib
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app import master_key
from app.errors import ConfigError
from app.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "deep" / "data")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_key(settings: Settings, content: bytes, mode: int = 0o600) -> Path:
    settings.data_dir.mkdir(parents=True)
    path = settings.data_dir / "master_key"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_configured_key_is_left_alone(tmp_path):
    settings = Settings(master_key="sk-configured-key", data_dir=tmp_path / "data")
    announced: list[str] = []
    assert master_key.ensure(settings, announced.append) is settings
    assert not announced
    assert not settings.data_dir.exists()


def test_a_missing_key_is_made_and_announced_once(settings):
    announced: list[str] = []
    key = master_key.ensure(settings, announced.append).master_key
    assert key is not None
    assert key.startswith("sk-")
    assert len(key) >= 35
    assert len(announced) == 1
    assert key in announced[0]
    assert str(settings.data_dir / "master_key") in announced[0]

    assert master_key.ensure(settings, announced.append).master_key == key
    assert len(announced) == 1


def test_key_and_directory_are_the_owners_only(settings):
    master_key.ensure(settings, lambda _text: None)
    assert mode_of(settings.data_dir) == 0o700
    assert mode_of(settings.data_dir / "master_key") == 0o600
    assert [path.name for path in settings.data_dir.iterdir()] == ["master_key"]


def test_two_gateways_have_different_keys(tmp_path):
    first, second = (
        master_key.ensure(Settings(data_dir=tmp_path / name), lambda _text: None).master_key
        for name in "ab"
    )
    assert first != second


def test_many_that_start_at_once_agree_on_one_key(settings):
    together = threading.Barrier(16)
    announced: list[str] = []

    def start(_number):
        together.wait()
        return master_key.ensure(settings, announced.append).master_key

    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(start, range(16)))
    assert len(keys) == 1
    assert len(announced) == 1
    assert [path.name for path in settings.data_dir.iterdir()] == ["master_key"]


def test_a_key_that_somebody_wrote_there_is_used(settings):
    write_key(settings, b"sk-by-hand-of-the-operator\n")
    ensured = master_key.ensure(settings, pytest.fail)
    assert ensured.master_key == "sk-by-hand-of-the-operator"


@pytest.mark.parametrize(
    ("content", "mode", "advice"),
    [
        pytest.param(b"", 0o600, "is empty; delete it", id="empty"),
        pytest.param(b" \n", 0o600, "is empty; delete it", id="blank"),
        pytest.param("sk-schlüssel".encode(), 0o600, "printable ASCII", id="not-ascii"),
        pytest.param(b"sk-one\nsk-two\n", 0o600, "printable ASCII", id="two-lines"),
        pytest.param(b"sk-secret-content", 0o604, "chmod 600", id="world-readable"),
        pytest.param(b"sk-secret-content", 0o602, "chmod 600", id="world-writable"),
        pytest.param(b"sk-secret-content", 0o620, "chmod 600", id="group-writable"),
    ],
)
def test_a_bad_file_is_refused_with_advice(settings, content, mode, advice):
    path = write_key(settings, content, mode)
    with pytest.raises(ConfigError, match=advice) as refusal:
        master_key.ensure(settings, pytest.fail)
    (mistake,) = refusal.value.mistakes
    assert mistake.startswith(f"{path}: ")
    assert "MANIFOLD_MASTER_KEY" in mistake
    assert "secret-content" not in mistake


def test_a_key_mounted_for_the_group_is_used(settings):
    write_key(settings, b"sk-mounted-by-kubernetes", 0o640)
    assert master_key.ensure(settings, pytest.fail).master_key == "sk-mounted-by-kubernetes"


def test_a_directory_in_its_place_is_refused(settings):
    (settings.data_dir / "master_key").mkdir(parents=True)
    with pytest.raises(ConfigError, match="Is a directory"):
        master_key.ensure(settings, pytest.fail)


def test_a_data_dir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(ConfigError, match="MANIFOLD_MASTER_KEY"):
        master_key.ensure(Settings(data_dir=tmp_path / "data"), pytest.fail)


# How one key follows another


def key_hash(key):
    return hashlib.sha256(key.encode()).hexdigest()


def hours_left(until):
    return (until - dt.datetime.now(dt.UTC)) / dt.timedelta(hours=1)


HOUR = dt.timedelta(hours=1)


def test_a_rotation_makes_a_new_key_and_remembers_the_hash_of_the_old_one(settings):
    old = master_key.ensure(settings, lambda _: None).master_key
    path = master_key.rotate(settings, HOUR)
    ensured = master_key.ensure(settings, pytest.fail)
    assert path.read_text().strip() == ensured.master_key != old
    [retiring] = ensured.retiring_master_keys
    assert retiring.sha256 == key_hash(old)
    assert 0.9 < hours_left(retiring.until) <= 1
    for file in settings.data_dir.iterdir():
        assert old not in file.read_text()
        assert mode_of(file) == 0o600
    assert sorted(file.name for file in settings.data_dir.iterdir()) == [
        "master_key",
        "master_key.previous",
    ]


def test_rotations_one_after_the_other_keep_what_still_works(settings):
    keys = [master_key.ensure(settings, lambda _: None).master_key]
    for grace in (HOUR, -HOUR, 2 * HOUR):
        master_key.rotate(settings, grace)
        keys.append(master_key.ensure(settings, pytest.fail).master_key)
    retiring = master_key.ensure(settings, pytest.fail).retiring_master_keys
    assert [each.sha256 for each in retiring] == [key_hash(keys[0]), key_hash(keys[2])]
    assert len(set(keys)) == 4


def test_rotations_at_once_lose_no_key(settings):
    master_key.ensure(settings, lambda _: None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: master_key.rotate(settings, HOUR), range(8)))
    assert len(master_key.ensure(settings, pytest.fail).retiring_master_keys) == 8


def test_a_configured_key_is_not_rotated(tmp_path):
    with pytest.raises(ConfigError, match="previous_master_keys"):
        master_key.rotate(Settings(master_key="sk-configured-key", data_dir=tmp_path), HOUR)
    assert list(tmp_path.iterdir()) == []


def test_there_must_be_a_key_to_rotate(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        master_key.rotate(Settings(data_dir=tmp_path / "nothing"), HOUR)


def test_previous_keys_work_for_so_long_after_the_first_start_with_the_present_one(tmp_path):
    settings = Settings(
        master_key="sk-new-configured-key",
        previous_master_keys=("sk-old-one", "sk-older-one"),
        master_key_overlap_hours=2,
        data_dir=tmp_path / "data",
    )
    first = master_key.ensure(settings, pytest.fail).retiring_master_keys
    again = master_key.ensure(settings, pytest.fail).retiring_master_keys
    assert first == again, "a restart does not prolong it"
    assert [each.sha256 for each in first] == [key_hash("sk-old-one"), key_hash("sk-older-one")]
    assert all(1.9 < hours_left(each.until) <= 2 for each in first)
    [mark] = settings.data_dir.iterdir()
    assert mode_of(mark) == 0o600
    assert "sk-" not in mark.read_text()


def test_many_that_start_at_once_agree_on_the_end_of_the_previous_keys(tmp_path):
    settings = Settings(
        master_key="sk-new", previous_master_keys=("sk-old",), data_dir=tmp_path / "data"
    )
    together = threading.Barrier(16)

    def start(_number):
        together.wait()
        return master_key.ensure(settings, pytest.fail).retiring_master_keys

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(start, range(16)))) == 1
    assert len(list(settings.data_dir.iterdir())) == 1


@pytest.mark.parametrize("name", ["master_key.previous", "since"])
def test_a_mark_that_is_broken_stops_the_start(tmp_path, name):
    if name == "since":
        settings = Settings(master_key="sk-n", previous_master_keys=("sk-o",), data_dir=tmp_path)
        name = f"master_key.since-{key_hash('sk-n')[:16]}"
    else:
        settings = Settings(data_dir=tmp_path)
    (tmp_path / name).write_text("0" * 64 + " nonsense")
    with pytest.raises(ConfigError, match="delete it"):
        master_key.ensure(settings, lambda _: None)
