"""config.yaml's text -> checked sections; whatever is wrong on the way is collected."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from marshmallow import ValidationError

from app.config_schema import Section
from app.errors import ConfigError

_REFERENCE = "os.environ/"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"


class Reading:
    """One pass over a configuration: the environment it may refer to, and what was found.

    `environ` is the process's environment and, below it, the file's `environment_variables`.
    `mistakes` and `warnings` are texts `<path>: <what is wrong>` in the order they were met.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ: dict[str, str] = dict(environ)
        self.mistakes: list[str] = []
        self.warnings: list[str] = []
        self._unset: list[str] = []
        self._ignored: set[str] = set()

    def mistake(self, path: str, what: str) -> None:
        """Note a mistake, unless it is only that a missing variable has the wrong type."""
        if not any(unset == path or unset.startswith(f"{path}.") for unset in self._unset):
            self.mistakes.append(f"{path}: {what}")

    def warn(self, path: str, what: str) -> None:
        self.warnings.append(f"{path}: {what}")

    def document(self, path: Path) -> dict[str, Any]:
        """The file's own mapping; dates stay text, for `api_version: 2024-10-21` is one.

        Raises ConfigError when the file cannot be read or is not YAML.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise ConfigError([f"{path}: {error.strerror}"]) from None
        except UnicodeDecodeError:
            raise ConfigError([f"{path}: is not UTF-8 text"]) from None
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            if root is None:
                return {}
            for where, lines in _repeated_keys(root):
                self.mistake(where, f"written twice, in lines {lines}")
            content = loader.construct_document(root)
        except yaml.YAMLError as error:
            # The error itself would show the line, and the line may hold a key.
            raise ConfigError([f"{path}: {_problem(error)}"]) from None
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            # PyYAML's constructors say it each in their own way: `!!int` alone is an IndexError.
            raise ConfigError([f"{path}: holds a value that is not valid YAML"]) from None
        if not isinstance(content, dict):
            raise ConfigError([f"{path}: must be a mapping such as `model_list: [...]`"])
        return content

    def add_environment(self, variables: Any, path: str) -> None:
        """Let references see the file's own variables too; the process's environment wins."""
        if not isinstance(variables, dict | None):
            self.mistake(path, "must be a mapping")
            return
        own: dict[str, str] = {}
        for name, value in (variables or {}).items():
            if isinstance(value, dict | list):
                self.mistake(_join(path, name), "must be text")
            elif value is not None:
                own[str(name)] = str(self._resolved(value, _join(path, name)))
        self.environ = own | self.environ

    def section(self, schema: type[Section], value: Any, path: str) -> dict[str, Any]:
        """The checked keys of one mapping; a key without a value counts as not written."""
        if not isinstance(value, dict | None):
            self.mistake(path, "must be a mapping")
            return {}
        given: dict[str, Any] = {}
        for key, item in (value or {}).items():
            name, where = str(key), _join(path, key)
            if schema.ignores(name):
                self._warn_ignored(where)
            elif item is not None:
                given[name] = item if name in schema.containers() else self._resolved(item, where)
        try:
            return dict(schema().load(given))
        except ValidationError as error:
            for key, messages in error.messages_dict.items():
                self.mistake(_join(path, key), _in_words(schema, key, messages))
            valid = error.valid_data
            return valid if isinstance(valid, dict) else {}

    def entries(self, value: Any, path: str) -> Iterator[tuple[str, Any]]:
        """Path and value of each entry of a list."""
        if not isinstance(value, list | None):
            self.mistake(path, "must be a list; begin each entry with '- '")
            return
        for position, entry in enumerate(value or []):
            yield f"{path}.{position}", entry

    def _warn_ignored(self, path: str) -> None:
        # A hundred models with an `rpm` are told of it once.
        place = re.sub(r"\.\d+\.", ".*.", path)
        if place not in self._ignored:
            self._ignored.add(place)
            self.warn(path, "LiteLLM's setting; Manifold has no use for it")

    def _resolved(self, value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {key: self._resolved(item, _join(path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._resolved(item, f"{path}.{at}") for at, item in enumerate(value)]
        if not isinstance(value, str) or not value.startswith(_REFERENCE):
            return value
        name = value.removeprefix(_REFERENCE)
        if name not in self.environ:
            self.mistake(path, f"environment variable {name} is not set")
            self._unset.append(path)
            return value
        return self.environ[name]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _repeated_keys(root: yaml.Node) -> Iterator[tuple[str, str]]:
    """Path and line numbers of every key that a mapping has twice; the last one would win."""
    met: set[yaml.Node] = set()

    def visit(
        node: yaml.Node, path: str, around: tuple[yaml.Node, ...]
    ) -> Iterator[tuple[str, str]]:
        if node in around:
            raise yaml.MarkedYAMLError(
                problem="an anchor refers to itself", problem_mark=node.start_mark
            )
        if node in met:
            return
        met.add(node)
        inside = (*around, node)
        if isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                yield from visit(item, _join(path, position), inside)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, item in node.value:
                where, line = _join(path, key.value), key.start_mark.line + 1
                if where in lines and key.tag != _MERGE:
                    yield where, f"{lines[where]} and {line}"
                lines[where] = line
                yield from visit(item, where, inside)

    return visit(root, "", ())


def _problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return "holds a character that YAML does not allow"
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "is not valid YAML"
    problem = re.sub(r"""'[^']*'|"[^"]*\"""", _unless_from_the_file, problem)
    return f"line {mark.line + 1}: {problem}" if mark else problem


def _unless_from_the_file(quoted: re.Match[str]) -> str:
    # Tokens such as ':' and '<block end>' are YAML's own.
    text = quoted[0]
    return text if len(text) <= len("':'") or text.startswith("'<") else "..."


def _in_words(schema: type[Section], key: str, messages: Any) -> str:
    if key in schema.known():
        return "; ".join(str(message) for message in messages)
    meant = schema.resembling(key)
    return f"unknown key; did you mean {meant!r}?" if meant else "unknown key"


def _join(path: str, key: object) -> str:
    text = str(key)
    # An empty key would be no place at all, and one with a line end two mistakes.
    shown = text if text.strip() and text.isprintable() else repr(text)
    return f"{path}.{shown}" if path else shown
