"""OpenAI's chat requests as Gemini's: a table of cases, each with the page that it follows."""

import base64
import json
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.providers.google.chat_request import generate_request
from app.providers.google.thought import LOST

OPENAI = "OpenAI API reference, chat completions, create; read 2026-11"
CONTENT = "Gemini API, generateContent, Content and Part; read 2026-11"
CONFIG = "Gemini API, generateContent, GenerationConfig; read 2026-11"
CALLING = "Gemini API, Function calling; read 2026-11"
THINKING = "Gemini API, Thinking, and OpenAI compatibility, Thinking; read 2026-11"
SIGNATURES = "Gemini API, Thought signatures; read 2026-11"
FILES = "Vertex AI, GenerateContent, FileData and Blob; read 2026-11"
LABELS = "Google Cloud, Requirements for labels; read 2026-11"
SAFETY = "Gemini API, Safety settings; read 2026-11"

PNG = base64.b64encode(b"\x89PNG").decode()
HI = [{"role": "user", "content": "hi"}]
SAID = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "weather", "description": "The weather.", "parameters": WEATHER}
TOOL = {"type": "function", "function": FUNCTION}
DECLARED = {"name": "weather", "description": "The weather.", "parametersJsonSchema": WEATHER}
TOOLS = [{"functionDeclarations": [DECLARED]}]


def attach(file_id):
    if file_id != "f-pdf":
        raise InvalidRequest(f"no file {file_id}", param="file_id")
    return "gs://bucket/manifold/f-pdf", "application/pdf"


def translated(body: dict[str, Any], *, labels: bool = False) -> dict[str, Any]:
    return generate_request({"model": "gemini-2.5-flash", **body}, attach, labels=labels)


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


def config(**settings):
    return {**SAID, "generationConfig": settings}


def said(*parts):
    return {"contents": [{"role": "user", "parts": list(parts)}]}


def call(name="weather", arguments='{"city": "Rome"}', call_id="call_1", **more):
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
        **more,
    }


def after(calls, *results, **assistant):
    """A conversation in which the model has called functions."""
    return {
        "messages": [
            *HI,
            {"role": "assistant", "content": None, "tool_calls": list(calls), **assistant},
            *results,
        ]
    }


def result(content="sunny", call_id="call_1"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def called(*parts, answers=()):
    contents = [*SAID["contents"], {"role": "model", "parts": list(parts)}]
    if answers:
        contents.append({"role": "user", "parts": list(answers)})
    return {"contents": contents}


def function_call(name="weather", args=None, **more):
    return {"functionCall": {"name": name, "args": args or {"city": "Rome"}, **more}}


def answered(response, name="weather", **more):
    return {"functionResponse": {"name": name, "response": response, **more}}


class Case(NamedTuple):
    name: str
    source: str
    body: dict[str, Any]
    request: dict[str, Any]
    model: str = "gemini-2.5-flash"
    labels: bool = False


CASES = [
    # Messages
    Case("one user message", CONTENT, {"messages": HI}, SAID),
    Case(
        "several system messages are parts of one instruction, wherever they stand",
        CONTENT,
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                *HI,
                {"role": "developer", "content": [{"type": "text", "text": "In verse."}]},
            ]
        },
        {**SAID, "systemInstruction": {"parts": [{"text": "Be brief."}, {"text": "In verse."}]}},
    ),
    Case(
        "a system message of several parts",
        OPENAI,
        {
            "messages": [
                {
                    "role": "system",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                },
                *HI,
            ]
        },
        {**SAID, "systemInstruction": {"parts": [{"text": "a"}, {"text": "b"}]}},
    ),
    Case(
        "nothing but a system message is said by the user, for contents must not be empty",
        CONTENT,
        {"messages": [{"role": "system", "content": "Say hello."}]},
        said({"text": "Say hello."}),
    ),
    Case(
        "empty content is a blank, for empty parts are refused",
        CONTENT,
        {"messages": [{"role": "user", "content": ""}]},
        said({"text": " "}),
    ),
    Case(
        "an empty list of parts is a blank",
        CONTENT,
        user(),
        said({"text": " "}),
    ),
    Case(
        "an empty text beside another is left out",
        CONTENT,
        user({"type": "text", "text": ""}, {"type": "text", "text": "hi"}),
        SAID,
    ),
    Case(
        "an empty system message is none",
        CONTENT,
        {"messages": [{"role": "system", "content": ""}, *HI]},
        SAID,
    ),
    Case(
        "neighbours of the same role are one content",
        CONTENT,
        {"messages": [*HI, {"role": "user", "content": "again", "name": "Ann"}]},
        said({"text": "hi"}, {"text": "again"}),
    ),
    Case(
        "the assistant is the model",
        CONTENT,
        {"messages": [*HI, {"role": "assistant", "content": "hello"}, *HI]},
        {
            "contents": [
                *SAID["contents"],
                {"role": "model", "parts": [{"text": "hello"}]},
                *SAID["contents"],
            ]
        },
    ),
    Case(
        "a conversation that the assistant begins begins with a blank of the user",
        CONTENT,
        {"messages": [{"role": "assistant", "content": "hello"}, *HI]},
        {
            "contents": [
                {"role": "user", "parts": [{"text": " "}]},
                {"role": "model", "parts": [{"text": "hello"}]},
                *SAID["contents"],
            ]
        },
    ),
    Case(
        "a refusal is what the model said",
        OPENAI,
        {"messages": [*HI, {"role": "assistant", "content": None, "refusal": "No."}]},
        called({"text": "No."}),
    ),
    Case(
        "an empty assistant message is a blank",
        CONTENT,
        {"messages": [*HI, {"role": "assistant", "content": ""}]},
        called({"text": " "}),
    ),
    Case(
        "a picture that the model has made",
        "LiteLLM, image generation in chat; read 2026-11",
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": "here",
                    "images": [
                        {
                            "type": "image_url",
                            "image_url": {"url": f"data:image/png;base64,{PNG}"},
                        }
                    ],
                },
            ]
        },
        called({"text": "here"}, {"inlineData": {"mimeType": "image/png", "data": PNG}}),
    ),
    # Parts
    Case(
        "a picture in a data URL",
        FILES,
        user({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}),
        said({"inlineData": {"mimeType": "image/png", "data": PNG}}),
    ),
    Case(
        "a picture's address as a bare string",
        FILES,
        user({"type": "image_url", "image_url": "https://example.com/a.webp?x=1"}),
        said({"fileData": {"fileUri": "https://example.com/a.webp?x=1", "mimeType": "image/webp"}}),
    ),
    Case(
        "a picture's address that does not say its type",
        FILES,
        user({"type": "image_url", "image_url": {"url": "https://example.com/picture"}}),
        said({"fileData": {"fileUri": "https://example.com/picture", "mimeType": "image/jpeg"}}),
    ),
    Case(
        "a picture's address with its type beside it, as LiteLLM's clients give it",
        FILES,
        user({"type": "image_url", "image_url": {"url": "https://e.com/p", "format": "image/png"}}),
        said({"fileData": {"fileUri": "https://e.com/p", "mimeType": "image/png"}}),
    ),
    Case(
        "a film's address",
        FILES,
        user({"type": "video_url", "video_url": {"url": "https://e.com/film"}}),
        said({"fileData": {"fileUri": "https://e.com/film", "mimeType": "video/mp4"}}),
    ),
    Case(
        "a sound",
        FILES,
        user({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}),
        said({"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}}),
    ),
    Case(
        "a sound in mp3",
        FILES,
        user({"type": "input_audio", "input_audio": {"data": "SUQz", "format": "mp3"}}),
        said({"inlineData": {"mimeType": "audio/mp3", "data": "SUQz"}}),
    ),
    Case(
        "a sound in a data URL",
        FILES,
        user(
            {
                "type": "input_audio",
                "input_audio": {"data": "data:audio/x-wav;base64,UklGRg==", "format": "wav"},
            }
        ),
        said({"inlineData": {"mimeType": "audio/wav", "data": "UklGRg=="}}),
    ),
    Case(
        "a file by its id",
        FILES,
        user({"type": "text", "text": "hi"}, {"type": "file", "file": {"file_id": "f-pdf"}}),
        said(
            {"text": "hi"},
            {
                "fileData": {
                    "fileUri": "gs://bucket/manifold/f-pdf",
                    "mimeType": "application/pdf",
                }
            },
        ),
    ),
    Case(
        "an image file by its id, as assistants have it",
        FILES,
        user({"type": "image_file", "image_file": {"file_id": "f-pdf"}}),
        said(
            {
                "fileData": {
                    "fileUri": "gs://bucket/manifold/f-pdf",
                    "mimeType": "application/pdf",
                }
            }
        ),
    ),
    Case(
        "a file's bytes in a data URL",
        FILES,
        user(
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="},
            }
        ),
        said({"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}}),
    ),
    Case(
        "a file's bare base64 with a name",
        FILES,
        user({"type": "file", "file": {"filename": "a.md", "file_data": "aGk="}}),
        said({"inlineData": {"mimeType": "text/plain", "data": "aGk="}}),
    ),
    Case(
        "a file's bare base64 without a name is a PDF, which is all that OpenAI takes",
        OPENAI,
        user({"type": "file", "file": {"file_data": "JVBERg=="}}),
        said({"inlineData": {"mimeType": "application/pdf", "data": "JVBERg=="}}),
    ),
    Case(
        "JSON goes as plain text, for its own type is refused",
        FILES,
        user(
            {
                "type": "file",
                "file": {"filename": "a.json", "file_data": "data:application/json;base64,e30="},
            }
        ),
        said({"inlineData": {"mimeType": "text/plain", "data": "e30="}}),
    ),
    Case(
        "a type that says nothing is read from the name",
        FILES,
        user(
            {
                "type": "file",
                "file": {
                    "filename": "a.mp4",
                    "file_data": "data:application/octet-stream;base64,AAAA",
                },
            }
        ),
        said({"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}),
    ),
    Case(
        "a data URL that is not in base64",
        "RFC 2397",
        user({"type": "file", "file": {"file_data": "data:text/plain,a%20b"}}),
        said({"inlineData": {"mimeType": "text/plain", "data": "YSBi"}}),
    ),
    # Tools
    Case(
        "functions are declared with their own JSON schema",
        CALLING,
        {"messages": HI, "tools": [TOOL]},
        {**SAID, "tools": TOOLS},
    ),
    Case(
        "all functions are in one entry",
        CALLING,
        {
            "messages": HI,
            "tools": [TOOL, {"type": "function", "function": {"name": "now", "strict": True}}],
        },
        {**SAID, "tools": [{"functionDeclarations": [DECLARED, {"name": "now"}]}]},
    ),
    Case(
        "parameters without properties are left out, for they are refused",
        CALLING,
        {
            "messages": HI,
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "now",
                        "parameters": {"type": "object", "properties": {}},
                    },
                }
            ],
        },
        {**SAID, "tools": [{"functionDeclarations": [{"name": "now"}]}]},
    ),
    Case(
        "Google's own tools",
        CALLING,
        {"messages": HI, "tools": [TOOL, {"google_search": {}}, {"codeExecution": {}}]},
        {**SAID, "tools": [*TOOLS, {"googleSearch": {}}, {"codeExecution": {}}]},
    ),
    Case(
        "a web search is Google's",
        OPENAI,
        {"messages": HI, "web_search_options": {}},
        {**SAID, "tools": [{"googleSearch": {}}]},
    ),
    *(
        Case(
            f"tool_choice {choice}",
            CALLING,
            {"messages": HI, "tools": [TOOL], "tool_choice": choice},
            {**SAID, "tools": TOOLS, "toolConfig": {"functionCallingConfig": {"mode": mode}}},
        )
        for choice, mode in (("none", "NONE"), ("auto", "AUTO"), ("required", "ANY"))
    ),
    Case(
        "tool_choice that names a function",
        CALLING,
        {
            "messages": HI,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {
            **SAID,
            "tools": TOOLS,
            "toolConfig": {
                "functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["weather"]}
            },
        },
    ),
    Case(
        "tool_choice that allows some functions: the others are not declared",
        OPENAI,
        {
            "messages": HI,
            "tools": [TOOL, {"type": "function", "function": {"name": "now"}}],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {
                    "mode": "auto",
                    "tools": [{"type": "function", "function": {"name": "weather"}}],
                },
            },
        },
        {**SAID, "tools": TOOLS, "toolConfig": {"functionCallingConfig": {"mode": "AUTO"}}},
    ),
    Case(
        "no tool choice where there are no tools",
        CALLING,
        {"messages": HI, "tool_choice": "none"},
        SAID,
    ),
    Case(
        "a call and its result",
        CALLING,
        after([call()], result()),
        called(function_call(), answers=[answered({"output": "sunny"})]),
    ),
    Case(
        "results of parallel calls stand in one content, in the order of the calls",
        CALLING,
        after(
            [call(), call("now", "{}", "call_2"), call(arguments='{"city":"Oslo"}', call_id="c3")],
            result("cold", "c3"),
            result("noon", "call_2"),
            result("hot"),
        ),
        called(
            function_call(),
            {"functionCall": {"name": "now", "args": {}}},
            function_call(args={"city": "Oslo"}, id="c3"),
            answers=[
                answered({"output": "hot"}),
                answered({"output": "noon"}, "now"),
                answered({"output": "cold"}, id="c3"),
            ],
        ),
    ),
    Case(
        "a result that is a JSON object goes as it is",
        CALLING,
        after([call()], result('{"sky": "blue"}')),
        called(function_call(), answers=[answered({"sky": "blue"})]),
    ),
    Case(
        "a result that is any other JSON is wrapped",
        CALLING,
        after([call()], result("[1, 2]")),
        called(function_call(), answers=[answered({"output": "[1, 2]"})]),
    ),
    Case(
        "a result in several parts",
        OPENAI,
        after([call()], result([{"type": "text", "text": "sun"}, {"type": "text", "text": "ny"}])),
        called(function_call(), answers=[answered({"output": "sunny"})]),
    ),
    Case(
        "a file in a result stands beside it",
        CALLING,
        after([call()], result([{"type": "file", "file": {"file_id": "f-pdf"}}])),
        called(
            function_call(),
            answers=[
                answered({"output": ""}),
                {
                    "fileData": {
                        "fileUri": "gs://bucket/manifold/f-pdf",
                        "mimeType": "application/pdf",
                    }
                },
            ],
        ),
    ),
    Case(
        "what the model said before it called",
        CALLING,
        after([call()], result(), content="Let me see."),
        called({"text": "Let me see."}, function_call(), answers=[answered({"output": "sunny"})]),
    ),
    Case(
        "a call without arguments",
        CALLING,
        after([call("now", "")], result("noon")),
        called(
            {"functionCall": {"name": "now", "args": {}}},
            answers=[answered({"output": "noon"}, "now")],
        ),
    ),
    Case(
        "a legacy function call and its message",
        "OpenAI API reference, chat completions, function message (deprecated); read 2026-11",
        {
            "messages": [
                *HI,
                {
                    "role": "assistant",
                    "content": None,
                    "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'},
                },
                {"role": "function", "name": "weather", "content": "sunny"},
            ]
        },
        called(function_call(), answers=[answered({"output": "sunny"})]),
    ),
    Case(
        "calls that end a conversation, as rows for fine-tuning do",
        "Google Cloud, Prepare supervised fine-tuning data for Gemini; read 2026-11",
        after([call()]),
        called(function_call()),
    ),
    # Thought signatures
    Case(
        "a signature travels in the tool call's id",
        SIGNATURES,
        after([call(call_id="call_1__thought__c2ln")], result(call_id="call_1__thought__c2ln")),
        called(
            {**function_call(), "thoughtSignature": "c2ln"},
            answers=[answered({"output": "sunny"})],
        ),
    ),
    Case(
        "an id of Google's goes back to it",
        SIGNATURES,
        after([call(call_id="g7__thought__c2ln")], result(call_id="g7__thought__c2ln")),
        called(
            {**function_call(id="g7"), "thoughtSignature": "c2ln"},
            answers=[answered({"output": "sunny"}, id="g7")],
        ),
    ),
    Case(
        "a signature where Google's own layer for OpenAI's clients puts it",
        SIGNATURES,
        after([call(extra_content={"google": {"thought_signature": "c2ln"}})], result()),
        called(
            {**function_call(), "thoughtSignature": "c2ln"},
            answers=[answered({"output": "sunny"})],
        ),
    ),
    Case(
        "a signature where LiteLLM puts it",
        SIGNATURES,
        after([call(provider_specific_fields={"thought_signature": "c2ln"})], result()),
        called(
            {**function_call(), "thoughtSignature": "c2ln"},
            answers=[answered({"output": "sunny"})],
        ),
    ),
    Case(
        "a lost signature is made good from version 3 on, at the first of parallel calls",
        SIGNATURES,
        after([call(), call(call_id="call_2")], result(), result(call_id="call_2")),
        called(
            {**function_call(), "thoughtSignature": LOST},
            function_call(),
            answers=[answered({"output": "sunny"}), answered({"output": "sunny"})],
        ),
        model="gemini-3-pro-preview",
    ),
    # Settings
    Case(
        "numbers",
        CONFIG,
        {
            "messages": HI,
            "temperature": 0,
            "top_p": 0.5,
            "top_k": 40,
            "n": 2,
            "seed": 7,
            "presence_penalty": 0.1,
            "frequency_penalty": -0.1,
            "max_tokens": 9,
        },
        config(
            maxOutputTokens=9,
            temperature=0,
            topP=0.5,
            topK=40,
            candidateCount=2,
            seed=7,
            presencePenalty=0.1,
            frequencyPenalty=-0.1,
        ),
    ),
    Case(
        "max_completion_tokens wins over max_tokens",
        OPENAI,
        {"messages": HI, "max_tokens": 9, "max_completion_tokens": 10},
        config(maxOutputTokens=10),
    ),
    Case("one stop", CONFIG, {"messages": HI, "stop": "END"}, config(stopSequences=["END"])),
    Case(
        "several stops",
        CONFIG,
        {"messages": HI, "stop": ["a", "b"]},
        config(stopSequences=["a", "b"]),
    ),
    Case(
        "logprobs",
        CONFIG,
        {"messages": HI, "logprobs": True, "top_logprobs": 3},
        config(responseLogprobs=True, logprobs=3),
    ),
    Case(
        "response_format json_object",
        CONFIG,
        {"messages": HI, "response_format": {"type": "json_object"}},
        config(responseMimeType="application/json"),
    ),
    Case(
        "response_format json_schema",
        "Gemini API, Structured outputs; read 2026-11",
        {
            "messages": HI,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "w", "schema": WEATHER, "strict": True},
            },
        },
        config(responseMimeType="application/json", responseJsonSchema=WEATHER),
    ),
    Case(
        "response_format json_schema without a schema",
        OPENAI,
        {
            "messages": HI,
            "response_format": {"type": "json_schema", "json_schema": {"name": "w"}},
        },
        config(responseMimeType="application/json"),
    ),
    Case(
        "response_format text",
        OPENAI,
        {"messages": HI, "response_format": {"type": "text"}},
        SAID,
    ),
    Case(
        "modalities",
        CONFIG,
        {"messages": HI, "modalities": ["text", "image"]},
        config(responseModalities=["TEXT", "IMAGE"]),
    ),
    Case(
        "a voice",
        CONFIG,
        {
            "messages": HI,
            "modalities": ["audio"],
            "audio": {"voice": "Kore", "format": "pcm16"},
        },
        config(
            responseModalities=["AUDIO"],
            speechConfig={"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": "Kore"}}},
        ),
    ),
    Case(
        "how closely a picture is looked at",
        CONFIG,
        user(
            {
                "type": "image_url",
                "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"},
            }
        ),
        {
            **said({"inlineData": {"mimeType": "image/png", "data": PNG}}),
            "generationConfig": {"mediaResolution": "MEDIA_RESOLUTION_LOW"},
        },
    ),
    *(
        Case(
            f"reasoning_effort {effort} of {model}",
            THINKING,
            {"messages": HI, "reasoning_effort": effort},
            config(thinkingConfig=thinking),
            model=model,
        )
        for model, effort, thinking in (
            ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
            ("gemini-2.5-flash", "low", {"thinkingBudget": 1024}),
            ("gemini-2.5-pro", "medium", {"thinkingBudget": 8192}),
            ("gemini-2.5-pro", "high", {"thinkingBudget": 24576}),
            ("4711", "high", {"thinkingBudget": 24576}),
            ("gemini-3-flash-preview", "none", {"thinkingLevel": "minimal"}),
            ("gemini-3.1-pro-preview", "minimal", {"thinkingLevel": "low"}),
            ("gemini-4-argon", "medium", {"thinkingLevel": "medium"}),
            ("gemini-flash-latest", "xhigh", {"thinkingLevel": "high"}),
        )
    ),
    Case(
        "reasoning_effort of a model that does not think",
        THINKING,
        {"messages": HI, "reasoning_effort": "high"},
        SAID,
        model="gemini-2.0-flash",
    ),
    Case(
        "thinking in Google's own words",
        THINKING,
        {
            "messages": HI,
            "extra_body": {
                "google": {"thinking_config": {"thinking_budget": 5, "include_thoughts": True}}
            },
        },
        config(thinkingConfig={"thinkingBudget": 5, "includeThoughts": True}),
    ),
    Case(
        "thinking in Anthropic's words, which LiteLLM takes",
        THINKING,
        {"messages": HI, "thinking": {"type": "enabled", "budget_tokens": 5}},
        config(thinkingConfig={"includeThoughts": True, "thinkingBudget": 5}),
    ),
    Case(
        "no thinking in Anthropic's words",
        THINKING,
        {"messages": HI, "thinking": {"type": "disabled"}},
        config(thinkingConfig={"thinkingBudget": 0}),
    ),
    Case(
        "safety settings and cached content",
        SAFETY,
        {
            "messages": HI,
            "safety_settings": [
                {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}
            ],
            "cached_content": "cachedContents/1",
        },
        {
            **SAID,
            "safetySettings": [
                {"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}
            ],
            "cachedContent": "cachedContents/1",
        },
    ),
    Case(
        "metadata are labels at Vertex AI, spelt as labels must be",
        LABELS,
        {"messages": HI, "metadata": {"Team.Name": "Blue Sky", "1st": "x", "7": "y"}},
        {**SAID, "labels": {"team_name": "blue_sky", "st": "x"}},
        labels=True,
    ),
    Case(
        "AI Studio has no labels",
        "Gemini API, generateContent, request body; read 2026-11",
        {"messages": HI, "metadata": {"team": "blue"}},
        SAID,
    ),
    Case(
        "what changes nothing is dropped",
        OPENAI,
        {
            "messages": HI,
            "store": True,
            "service_tier": "auto",
            "prompt_cache_key": "k",
            "verbosity": "low",
            "user": "u",
            "logit_bias": {"1": 1},
            "parallel_tool_calls": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": None,
            "tools": None,
            "tool_choice": None,
            "response_format": None,
        },
        SAID,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_request_is_said_to_gemini(case):
    body = {"model": case.model, **case.body}
    before = json.dumps(body)
    request = generate_request(body, attach, labels=case.labels)
    assert request == case.request, case.source
    assert json.dumps(body) == before, "the caller's body is not touched"


class Refusal(NamedTuple):
    name: str
    source: str
    body: dict[str, Any]
    param: str


GS = {"type": "image_url", "image_url": {"url": "gs://bucket/private.png"}}
STUDIO = "https://generativelanguage.googleapis.com/v1beta/files/abc"

REFUSALS = [
    Refusal("no messages", OPENAI, {}, "messages"),
    Refusal("an empty list of messages", OPENAI, {"messages": []}, "messages"),
    Refusal("a message that is none", OPENAI, {"messages": ["hi"]}, "messages[0]"),
    Refusal(
        "an unknown role",
        OPENAI,
        {"messages": [{"role": "bot", "content": ""}]},
        "messages[0].role",
    ),
    Refusal("content of another form", OPENAI, user(1), "messages[0].content[0]"),
    Refusal(
        "an unknown part",
        OPENAI,
        user({"type": "hologram"}),
        "messages[0].content[0].type",
    ),
    Refusal(
        "a picture in a system message",
        CONTENT,
        {"messages": [{"role": "system", "content": [GS]}]},
        "file",
    ),
    Refusal(
        "a file that the account has not",
        FILES,
        user({"type": "file", "file": {"file_id": "f-2"}}),
        "file_id",
    ),
    Refusal(
        "a file without anything",
        OPENAI,
        user({"type": "file", "file": {}}),
        "messages[0].content[0].file",
    ),
    Refusal(
        "an empty file",
        OPENAI,
        user({"type": "file", "file": {"file_data": "data:application/pdf;base64,"}}),
        "messages[0].content[0].file.file_data",
    ),
    Refusal(
        "a file of no known type",
        FILES,
        user({"type": "file", "file": {"filename": "a.qqq", "file_data": "AAAA"}}),
        "messages[0].content[0].file.file_data",
    ),
    Refusal("an object in a bucket, whose owner nobody has asked", FILES, user(GS), "file_id"),
    Refusal(
        "a file of AI Studio by its address",
        FILES,
        user({"type": "image_url", "image_url": STUDIO}),
        "file_id",
    ),
    *(
        Refusal(
            f"the same, disguised: {url[:60]}",
            FILES,
            user({"type": "image_url", "image_url": url}),
            param,
        )
        for url, param in (
            ("HTTPS://GenerativeLanguage.googleapis.com:443/v1beta/files/abc", "file_id"),
            ("https://generative%6Canguage.googleapis.com/v1beta/files/abc", "file_id"),
            (f"https://{'a' * 5000}@generativelanguage.googleapis.com/v1/files/a", "file_id"),
            ("https://generativelanguage.googleapis.com./v1beta/files/abc", "file_id"),
            ("https:generativelanguage.googleapis.com/v1beta/files/abc", "file_id"),
            (
                "https://generative\tlanguage.googleapis.com/v1/files/a",
                "messages[0].content[0].image_url",
            ),
            (" GS://bucket/private.png", "file_id"),
            ("files/abc", "messages[0].content[0].image_url"),
            ("file:///etc/passwd", "messages[0].content[0].image_url"),
        )
    ),
    Refusal(
        "attachments",
        OPENAI,
        {"messages": [{**HI[0], "attachments": [{"file_id": "f-pdf"}]}]},
        "messages[0].attachments",
    ),
    Refusal(
        "tool resources", OPENAI, {"messages": HI, "tool_resources": {"a": 1}}, "tool_resources"
    ),
    Refusal("functions", OPENAI, {"messages": HI, "functions": [FUNCTION]}, "functions"),
    Refusal(
        "a custom tool",
        OPENAI,
        {"messages": HI, "tools": [{"type": "custom", "custom": {"name": "x"}}]},
        "tools[0].type",
    ),
    Refusal(
        "an unknown choice",
        OPENAI,
        {"messages": HI, "tools": [TOOL], "tool_choice": "always"},
        "tool_choice",
    ),
    Refusal(
        "a choice that allows a custom tool",
        OPENAI,
        {
            "messages": HI,
            "tools": [TOOL],
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "name": "x"}]},
            },
        },
        "tool_choice",
    ),
    Refusal(
        "a call of a custom tool",
        OPENAI,
        after([call(type="custom")], result()),
        "messages[1].tool_calls[0].type",
    ),
    Refusal(
        "arguments with what JSON has not",
        CALLING,
        after([call(arguments='{"a": NaN}')], result()),
        "messages[1].tool_calls[0].function.arguments",
    ),
    Refusal(
        "a file in a system message",
        CONTENT,
        {
            "messages": [
                {
                    "role": "system",
                    "content": [
                        {
                            "type": "file",
                            "file": {"file_data": "data:text/plain;base64,aGk="},
                        }
                    ],
                }
            ]
        },
        "messages[0].content",
    ),
    Refusal(
        "half a data URL",
        "RFC 2397",
        user({"type": "image_url", "image_url": "data:image/png;base64"}),
        "messages[0].content[0].image_url",
    ),
    Refusal(
        "an address that is none",
        FILES,
        user({"type": "image_url", "image_url": {"url": "https://[/a.png"}}),
        "messages[0].content[0].image_url.url",
    ),
    Refusal("logprobs as a number", OPENAI, {"messages": HI, "logprobs": 1}, "logprobs"),
    Refusal(
        "a choice among no tools",
        OPENAI,
        {"messages": HI, "tool_choice": "required"},
        "tool_choice",
    ),
    Refusal(
        "a choice of a tool that is not there",
        OPENAI,
        {
            "messages": HI,
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "now"}},
        },
        "tool_choice",
    ),
    Refusal(
        "a result of no call", OPENAI, {"messages": [*HI, result()]}, "messages[1].tool_call_id"
    ),
    Refusal(
        "a second result of one call",
        OPENAI,
        after([call()], result(), result()),
        "messages[3].tool_call_id",
    ),
    Refusal("a call without a result", OPENAI, after([call()], *HI), "messages[2]"),
    Refusal(
        "one of two calls without a result",
        CALLING,
        after([call(), call(call_id="call_2")], result()),
        "messages",
    ),
    Refusal(
        "arguments that are no JSON object",
        CALLING,
        after([call(arguments="[1]")], result()),
        "messages[1].tool_calls[0].function.arguments",
    ),
    Refusal(
        "a sound that only OpenAI has kept",
        OPENAI,
        {"messages": [*HI, {"role": "assistant", "audio": {"id": "audio_1"}}]},
        "messages[1].audio",
    ),
    Refusal("too many choices", CONFIG, {"messages": HI, "n": 9}, "n"),
    Refusal("half a choice", CONFIG, {"messages": HI, "n": 1.5}, "n"),
    Refusal("too many stops", CONFIG, {"messages": HI, "stop": list("abcdef")}, "stop"),
    Refusal("a seed beyond 32 bits", CONFIG, {"messages": HI, "seed": 2**31}, "seed"),
    Refusal(
        "a temperature in words", OPENAI, {"messages": HI, "temperature": "hot"}, "temperature"
    ),
    Refusal("a number that is a truth", OPENAI, {"messages": HI, "max_tokens": True}, "max_tokens"),
    Refusal("top_logprobs alone", OPENAI, {"messages": HI, "top_logprobs": 2}, "top_logprobs"),
    Refusal(
        "an unknown response_format",
        OPENAI,
        {"messages": HI, "response_format": {"type": "grammar"}},
        "response_format.type",
    ),
    Refusal("an unknown modality", OPENAI, {"messages": HI, "modalities": ["smell"]}, "modalities"),
    Refusal(
        "a sound in mp3 as the answer",
        CONFIG,
        {"messages": HI, "audio": {"voice": "Kore", "format": "mp3"}},
        "audio.format",
    ),
    Refusal(
        "an unknown effort",
        OPENAI,
        {"messages": HI, "reasoning_effort": "huge"},
        "reasoning_effort",
    ),
    Refusal(
        "a safety setting with an unknown key",
        SAFETY,
        {"messages": HI, "safety_settings": [{"x": "y"}]},
        "safety_settings[0]",
    ),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_what_gemini_has_no_form_for_is_refused_by_its_name(case):
    with pytest.raises(InvalidRequest) as refused:
        translated(case.body)
    assert refused.value.status == 400
    assert refused.value.param == case.param, case.source


def test_a_refused_body_does_not_come_back_whole_in_the_message():
    with pytest.raises(InvalidRequest) as refused:
        translated(user({"type": "image_url", "image_url": "x" * 100_000}))
    assert len(refused.value.message) < 400


def test_arguments_nested_too_deeply_are_refused():
    with pytest.raises(InvalidRequest) as refused:
        translated(after([call(arguments="[" * 100_000)], result()))
    assert refused.value.param == "messages[1].tool_calls[0].function.arguments"


def test_a_parameter_nested_too_deeply_is_refused():
    choice: dict[str, Any] = {}
    for _ in range(100_000):
        choice = {"type": choice}
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        translated({"messages": HI, "tools": [TOOL], "tool_choice": choice})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        [
            *("user", "system", "assistant", "tool", "function", "text", "file", "image_url"),
            *("call_1", "data:", "data:,", "gs://x", "https://[", "{}", "required", "auto"),
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "role",
                        "content",
                        "type",
                        "text",
                        "image_url",
                        "url",
                        "detail",
                        "file",
                        "input",
                    ),
                    *("file_id", "file_data", "filename", "input_audio", "data", "format", "id"),
                    *(
                        "tool_calls",
                        "tool_call_id",
                        "function",
                        "function_call",
                        "name",
                        "arguments",
                    ),
                    *("parameters", "properties", "json_schema", "schema", "google", "images"),
                    *("allowed_tools", "mode", "tools", "voice", "refusal", "extra_content"),
                ]
            )
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
messages = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "system", "assistant", "tool", "function", "x"]),
            "content": json_values,
        },
        optional={
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {
                        "id": st.sampled_from(["call_1", "a", ""]),
                        "function": st.fixed_dictionaries(
                            {"name": st.just("f"), "arguments": st.sampled_from(["{}", "", "1"])}
                        ),
                    }
                )
                | json_values,
                max_size=3,
            )
            | json_values,
            "tool_call_id": st.sampled_from(["call_1", "a", ""]) | json_values,
            "name": st.just("f") | json_values,
            "function_call": json_values,
            "images": json_values,
            "audio": json_values,
            "refusal": json_values,
        },
    )
    | json_values,
    max_size=5,
)
KEYS = (
    *("model", "temperature", "top_p", "n", "seed", "max_tokens", "stop", "logprobs", "labels"),
    *("top_logprobs", "response_format", "modalities", "audio", "reasoning_effort", "top_k"),
    *("thinking", "google", "extra_body", "safety_settings", "cached_content", "metadata"),
    *("tools", "tool_choice", "web_search_options"),
)
bodies = st.tuples(
    messages | json_values, st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6)
).map(lambda pair: {**pair[1], "messages": pair[0]})


@settings(max_examples=400, deadline=None)
@given(bodies, st.booleans())
@example({"messages": HI, "n": 10**400}, True)
@example({"messages": HI, "temperature": 10**400}, True)
@example({"messages": HI, "tool_choice": {"type": "allowed_tools"}}, True)
@example({"messages": HI, "metadata": []}, True)
def test_any_body_is_translated_or_refused(body, labels):
    try:
        request = generate_request(body, attach, labels=labels)
    except InvalidRequest as refused:
        assert refused.status == 400
        return
    json.dumps(request)
    roles = [content["role"] for content in request["contents"]]
    assert roles[0] == "user"
    assert all(a != b for a, b in pairwise(roles)), "they take turns"
    assert all(content["parts"] for content in request["contents"])
    assert all(part != {"text": ""} for content in request["contents"] for part in content["parts"])
