"""Tools of a chat: OpenAI's functions and tool choice -> Gemini's declarations and config. Pure.

Source: OpenAI API reference, chat completions, tools and tool_choice; Gemini API, Function calling,
Tool and ToolConfig; read 2026-11.
"""

from collections.abc import Collection, Mapping
from typing import Any

from app.errors import InvalidRequest
from app.providers.google.chat_parts import listed, mapping, text

_MODES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}
# Google's own tools, which clients may name in Google's way.
_OWN = {
    "google_search": "googleSearch",
    "code_execution": "codeExecution",
    "url_context": "urlContext",
    "google_maps": "googleMaps",
    "enterprise_web_search": "enterpriseWebSearch",
}
_OWN_NAMES = {**_OWN, **{name: name for name in _OWN.values()}}
_MEANING = ("$ref", "anyOf", "oneOf", "allOf")


def tools(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Gemini's `tools`, one entry with all functions first; empty when there are none.

    Raises InvalidRequest naming the tool that Gemini does not have.
    """
    allowed = _allowed(body.get("tool_choice"))
    declared, own = [], []
    given = body.get("tools")
    for index, item in enumerate(listed(given, "tools") if given is not None else []):
        where = f"tools[{index}]"
        tool = mapping(item, where)
        names = [name for name in tool if name in _OWN_NAMES]
        if tool.get("type") == "function":
            function = mapping(tool.get("function"), f"{where}.function")
            declaration = _declaration(function, f"{where}.function")
            if allowed is None or declaration["name"] in allowed:
                declared.append(declaration)
        elif names and len(tool) == 1:
            own.append({_OWN_NAMES[names[0]]: mapping(tool[names[0]] or {}, where)})
        else:
            raise InvalidRequest(
                f"{where}.type is {tool.get('type')!r:.100}; this model has function only, and "
                f"Google's own {', '.join(_OWN)}",
                param=f"{where}.type",
            )
    if body.get("web_search_options") is not None and {"googleSearch": {}} not in own:
        own.append({"googleSearch": {}})
    return [{"functionDeclarations": declared}, *own] if declared else own


def tool_config(body: Mapping[str, Any], found: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Gemini's `toolConfig`, empty when the choice is the model's. `found` are Gemini's tools."""
    choice = body.get("tool_choice")
    if choice is None:
        return {}
    declared = {
        function["name"] for tool in found for function in tool.get("functionDeclarations", ())
    }
    config: dict[str, Any] = {}
    match choice:
        case str() if choice in _MODES:
            mode = choice
        case {"type": "function", "function": {"name": str() as name}}:
            mode = "required"
            config["allowedFunctionNames"] = [name]
            if name not in declared:
                raise InvalidRequest(
                    f"tool_choice names {name!r:.100}, which is none of the tools",
                    param="tool_choice",
                )
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode}}:
            # The others are not declared at all.
            pass
        case _:
            raise InvalidRequest(
                f"tool_choice is {choice!r:.100}; it may be none, auto, required, or name a "
                "function",
                param="tool_choice",
            )
    if not declared:
        if mode == "required":
            raise InvalidRequest("tool_choice needs tools", param="tool_choice")
        return {}
    return {"functionCallingConfig": {"mode": _MODES[mode], **config}}


def _allowed(choice: Any) -> set[str] | None:
    """The functions that `allowed_tools` leaves, None for all of them."""
    if not isinstance(choice, Mapping) or choice.get("type") != "allowed_tools":
        return None
    where = "tool_choice.allowed_tools"
    names = set()
    for item in listed(mapping(choice.get("allowed_tools"), where).get("tools"), f"{where}.tools"):
        match item:
            case {"type": "function", "function": {"name": str() as name}}:
                names.add(name)
            case _:
                raise InvalidRequest(f"{where}.tools may name functions only", param="tool_choice")
    return names


def _declaration(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    declaration: dict[str, Any] = {"name": text(function.get("name"), f"{where}.name")}
    if function.get("description"):
        declaration["description"] = text(function["description"], f"{where}.description")
    if function.get("parameters") is not None:
        schema = mapping(function["parameters"], f"{where}.parameters")
        # A schema of an object without properties is refused; none at all says the same.
        if schema.get("properties") or any(key in schema for key in _MEANING):
            declaration["parametersJsonSchema"] = schema
    return declaration
