"""Threads that compute for long let others go on."""

import sys

import pytest

from app.concurrency import often_taking_turns


def test_turns_are_shorter_for_as_long_as_anybody_computes():
    usual = sys.getswitchinterval()
    with often_taking_turns():
        assert sys.getswitchinterval() < usual / 10
        with pytest.raises(ValueError), often_taking_turns():
            raise ValueError
        assert sys.getswitchinterval() < usual / 10
    assert sys.getswitchinterval() == pytest.approx(usual)
