"""FakeProvider keeps what Provider promises, and fails when told to."""

import pytest

from app.errors import UpstreamError
from tests.builders import make_upload
from tests.fakes import FakeProvider
from tests.providers.contract import ProviderContract


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


class TestFakeProvider(ProviderContract):
    """The contract, with the fixture above."""


def test_it_fails_when_told_to_and_then_works_again(provider):
    provider.fail_next(UpstreamError("no luck"), method="upload")
    assert list(provider.files()) == []
    with pytest.raises(UpstreamError, match="no luck"):
        provider.upload(make_upload())
    assert provider.upload(make_upload()).id in provider.stored
    assert len(provider.called("upload")) == 2


def test_an_answer_can_be_lost_after_the_work_is_done(provider):
    provider.fail_next(UpstreamError("no answer"), after_doing=True)
    with pytest.raises(UpstreamError, match="no answer"):
        provider.upload(make_upload())
    assert len(provider.stored) == 1
