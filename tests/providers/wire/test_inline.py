"""Bodies with file ids become bodies with contents; everything else stays byte for byte."""

import base64
import json

import pytest

from app.errors import InvalidRequest, NotFound, RangeNotSatisfiable
from app.providers.wire.byte_range import part_of
from app.providers.wire.inline import Inlined, inline_files

FILES = {
    "f-text": Inlined("notes.txt", "text/plain; charset=utf-8", "Grüße\n".encode()),
    "f-code": Inlined("main.ts", "video/mp2t", b"let a = 1"),
    "f-jsonl": Inlined("rows.jsonl", "application/octet-stream", b"{}\n"),
    "f-bom": Inlined("bom.csv", "text/csv", b"\xef\xbb\xbfa,b"),
    "f-svg": Inlined("logo.svg", "image/svg+xml", b"<svg/>"),
    "f-pdf": Inlined("a.pdf", "application/pdf", b"%PDF\xff"),
    "f-png": Inlined("dot.png", "image/png", b"\x89PNG"),
    "f-nameless": Inlined("dot.JPEG", "application/octet-stream", b"\xff\xd8"),
    "f-wav": Inlined("a.wav", "audio/x-wav", b"RIFF"),
    "f-mp3": Inlined("a.mp3", "audio/mpeg", b"ID3"),
    "f-zip": Inlined("a.zip", "application/zip", b"PK"),
    "f-latin": Inlined("latin.txt", "text/plain", b"\xe9"),
    "f-odd": Inlined('x\r\n"y".txt', "text/plain", b"z"),
    "f-half": Inlined("half\ud800.txt", "text/plain", b"z"),
}


def fetch(file_id: str) -> Inlined:
    if file_id not in FILES:
        raise NotFound(f"No such File object: {file_id}")
    return FILES[file_id]


def data_url(file_id: str, mime_type: str) -> str:
    return f"data:{mime_type};base64,{base64.b64encode(FILES[file_id].data).decode()}"


def chat(part, images="file_data"):
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    return json.loads(inline_files(json.dumps(body).encode(), fetch, images))["messages"][0][
        "content"
    ][0]


def responses(part):
    body = {"model": "m", "input": [{"role": "user", "content": [part]}]}
    answer = json.loads(inline_files(json.dumps(body).encode(), fetch, "image_url"))
    return answer["input"][0]["content"][0]


def file_part(file_id):
    return {"type": "file", "file": {"file_id": file_id}}


@pytest.mark.parametrize(
    ("file_id", "text"),
    [
        ("f-text", "File: notes.txt\nGrüße\n"),
        ("f-code", "File: main.ts\nlet a = 1"),
        ("f-jsonl", "File: rows.jsonl\n{}\n"),
        ("f-bom", "File: bom.csv\na,b"),
        ("f-svg", "File: logo.svg\n<svg/>"),
        ("f-odd", 'File: x "y".txt\nz'),
        ("f-half", "File: half?.txt\nz"),
    ],
)
def test_text_stands_in_the_message_under_its_name(file_id, text):
    assert chat(file_part(file_id)) == {"type": "text", "text": text}
    part = {"type": "input_file", "file_id": file_id}
    assert responses(part) == {"type": "input_text", "text": text}


def test_a_pdf_becomes_file_data():
    file = {"filename": "a.pdf", "file_data": data_url("f-pdf", "application/pdf")}
    assert chat(file_part("f-pdf")) == {"type": "file", "file": file}
    assert chat(file_part("f-pdf"), "image_url") == {"type": "file", "file": file}
    part = {"type": "input_file", "file_id": "f-pdf"}
    assert responses(part) == {"type": "input_file", **file}


@pytest.mark.parametrize(
    ("file_id", "mime_type"), [("f-png", "image/png"), ("f-nameless", "image/jpeg")]
)
def test_an_image_becomes_what_the_engine_takes(file_id, mime_type):
    url = data_url(file_id, mime_type)
    file = {"filename": FILES[file_id].filename, "file_data": url}
    assert chat(file_part(file_id), "file_data") == {"type": "file", "file": file}
    image = {"type": "image_url", "image_url": {"url": url}}
    assert chat(file_part(file_id), "image_url") == image
    part = {"type": "input_file", "file_id": file_id}
    assert responses(part) == {"type": "input_image", "image_url": url}


def test_an_image_part_keeps_its_detail():
    url = data_url("f-png", "image/png")
    part = {"type": "input_image", "file_id": "f-png", "detail": "low"}
    assert responses(part) == {"type": "input_image", "image_url": url, "detail": "low"}
    image = {"type": "image_file", "image_file": {"file_id": "f-png", "detail": "high"}}
    assert chat(image) == {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


@pytest.mark.parametrize(("file_id", "format"), [("f-wav", "wav"), ("f-mp3", "mp3")])
def test_sound_becomes_input_audio(file_id, format):
    sound = {"data": base64.b64encode(FILES[file_id].data).decode(), "format": format}
    assert chat(file_part(file_id)) == {"type": "input_audio", "input_audio": sound}


@pytest.mark.parametrize(
    ("part", "named"),
    [
        (file_part("f-zip"), "'a.zip' (application/zip)"),
        (file_part("f-latin"), "'latin.txt' (text/plain) is not UTF-8"),
        ({"type": "input_file", "file_id": "f-zip"}, "'a.zip' (application/zip)"),
        ({"type": "input_image", "file_id": "f-pdf"}, "application/pdf, not an image"),
        ({"type": "image_file", "image_file": {"file_id": "f-text"}}, "not an image"),
    ],
)
def test_what_no_engine_takes_is_refused_by_name(part, named):
    with pytest.raises(InvalidRequest) as refusal:
        chat(part)
    assert named in refusal.value.message
    assert (refusal.value.code, refusal.value.param) == ("invalid_value", "messages")


def test_an_unknown_id_is_not_found():
    with pytest.raises(NotFound):
        chat(file_part("file-of-somebody-else"))


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "code_interpreter", "container": {"file_ids": ["f-text"]}}]},
        {"tools": [{"type": "shell", "environment": {"file_ids": ["f-text"]}}]},
        {"tools": [{"type": "image_generation", "input_image_mask": {"file_id": "f-png"}}]},
        {"tool_resources": {"code_interpreter": {"file_ids": ["f-text"]}}},
        {"messages": [{"content": "hi", "attachments": [{"file_id": "f-text"}]}]},
        {"input": [{"type": "computer_call_output", "output": {"file_id": "f-png"}}]},
    ],
    ids=["code interpreter", "shell", "mask", "tool resources", "attachment", "screenshot"],
)
def test_an_id_where_no_content_can_stand_is_refused(extra):
    with pytest.raises(InvalidRequest, match="only as parts of messages"):
        inline_files(json.dumps({"model": "m", **extra}).encode(), fetch, "file_data")


def test_everything_else_stays_byte_for_byte():
    before = (
        '{ "seed": 12345678901234567890.50, "messages":[{"role":"user","content":[\r\n'
        '{"type":"text","text":"caf\\u00e9 \\/ é"}, '
    )
    after = ' ,{"type":"file","file":{"file_data":"data:x"}}, null, "f-text", 1e400]}]}'
    body = f'{before}{{"type":"file","file":{{"file_id":"f-jsonl"}}}}{after}'.encode()
    text = json.dumps({"type": "text", "text": "File: rows.jsonl\n{}\n"})
    assert inline_files(body, fetch, "file_data") == f"{before}{text}{after}".encode()


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[{"role":"user","content":"f-text"}]}',
        b'{"messages": [{"content": [{"type": "file", "file": {"file_id": null}}]}]}',
        b'{"messages": [{"content": [{"type": "file", "file": "f-text"}, {"type": []}]}]}',
        b'{"messages": null, "input": "hello", "tools": [{"container": "auto"}]}',
        b'{"metadata": {"file_id": "f-text"}, "tools": [{"container": {"file_ids": []}}]}',
    ],
)
def test_a_body_without_files_is_not_touched(body):
    assert inline_files(body, fetch, "file_data") == body


def test_every_file_of_every_message_and_tool_output_is_replaced():
    part = {"type": "input_file", "file_id": "f-text"}
    body = {
        "messages": [{"content": [file_part("f-text"), file_part("f-text")]}, {"content": "x"}],
        "input": [{"content": [part]}, {"type": "function_call_output", "output": [part]}],
    }
    answer = inline_files(json.dumps(body).encode(), fetch, "file_data")
    assert answer.count(b"notes.txt") == 4
    assert b"f-text" not in answer


@pytest.mark.parametrize(
    ("byte_range", "size", "expected"),
    [
        (None, 10, None),
        ("", 10, None),
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=2-5", 10, (2, 4)),
        ("Bytes= 2-5 ", 10, (2, 4)),
        ("bytes=9-", 10, (9, 1)),
        ("bytes=0-99", 10, (0, 10)),
        ("bytes=-3", 10, (7, 3)),
        ("bytes=-99", 10, (0, 10)),
        ("bytes=5-2", 10, None),
        ("bytes=-", 10, None),
        ("bytes=0-1,4-5", 10, None),
        ("bytes=a-b", 10, None),
        ("bytes=٣-٤", 10, None),
        ("items=0-1", 10, None),
        ("bytes=" + "9" * 5000 + "-", 10, None),
        ("bytes=-5", 0, None),
    ],
)
def test_a_range_names_a_part(byte_range, size, expected):
    part = part_of(byte_range, size)
    assert (part and (part.start, part.length)) == expected


@pytest.mark.parametrize(
    ("byte_range", "size"),
    [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-0", 0)],
)
def test_a_range_behind_the_end_is_refused_with_the_size(byte_range, size):
    with pytest.raises(RangeNotSatisfiable) as refusal:
        part_of(byte_range, size)
    assert refusal.value.headers == {"Content-Range": f"bytes */{size}"}
