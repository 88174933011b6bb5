"""The generated master key: made once, kept private, announced once."""

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
