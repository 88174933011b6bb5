"""deploy/Dockerfile read by its instructions."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATH = ROOT / "deploy" / "Dockerfile"


@dataclass(frozen=True)
class Stage:
    """What comes after one FROM: instructions and their texts, in their order."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        """The text of each instruction of that name."""
        return [text for instruction, text in self.instructions if instruction == name]

    def last(self, name: str) -> str:
        """The one that counts."""
        return self.all(name)[-1]

    def words(self, name: str) -> list[str]:
        """The words of an instruction in its exec form."""
        text = self.last(name)
        return [str(word) for word in json.loads(text[text.index("[") :])]

    @property
    def environment(self) -> dict[str, str]:
        pairs = (word for text in self.all("ENV") for word in shlex.split(text))
        return dict(pair.split("=", 1) for pair in pairs)


def stages() -> list[Stage]:
    """The build's stages; the last one is the image."""
    text = re.sub(r"(?m)^\s*#.*\n", "", PATH.read_text())
    lines = re.sub(r"\\\n\s*", " ", text).split("\n")
    said = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]
    starts = [place for place, (name, _) in enumerate(said) if name == "FROM"]
    return [
        Stage(said[start][1], tuple(said[start + 1 : end]))
        for start, end in zip(starts, [*starts[1:], len(said)], strict=True)
    ]
