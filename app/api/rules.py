"""URL rules that are quick to add: what builds a URL from one is compiled when it is first used."""

from typing import Any

from werkzeug.routing import Rule


class LazyRule(Rule):
    """A rule whose builders wait.

    Werkzeug writes and compiles two functions for each of our 170 rules; that was half of
    making an app, and next to none of them is ever called.
    """

    def _compile_builder(self, append_unknown: bool = True) -> Any:
        compiled = super()._compile_builder
        made: list[Any] = []

        def build(rule: Rule, /, **values: Any) -> Any:
            if not made:
                made.append(compiled(append_unknown))
            return made[0](rule, **values)

        return build
