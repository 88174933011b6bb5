"""A program's own directory, and nothing of anybody's accounts in its environment."""

import os
import re
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    known = re.compile("OPENAI_|AZURE_|MANIFOLD_|GEMINI_|GOOGLE_|VERTEXAI_|GCS_", re.IGNORECASE)
    for name in filter(known.match, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path
