"""Batch files line by line: what is a row, and a rewrite that leaves every other byte."""

import contextlib
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.providers.wire import jsonl
from app.providers.wire.jsonl import Row, openai_url

ROW = b'{"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"model": "m"}}'
BOM = b"\xef\xbb\xbf"


def rows(content: bytes, longest: int = 1024 * 1024) -> list[Row]:
    return list(jsonl.rows(jsonl.lines(io.BytesIO(content), longest)))


def rewritten(content: bytes, model: str = "up", spell=openai_url) -> bytes:
    return b"".join(jsonl.rewrite(rows(content), model, spell))


def leniently(content: bytes, model: str = "up", spell=openai_url) -> bytes:
    found = jsonl.lines(io.BytesIO(content), 1024 * 1024)
    return b"".join(jsonl.rewrite(jsonl.readable(found), model, spell))


def refusal(content: bytes, longest: int = 1024 * 1024) -> str:
    with pytest.raises(InvalidRequest) as refused:
        rows(content, longest)
    assert refused.value.param == "file"
    return refused.value.message


@pytest.mark.parametrize(
    "content",
    [
        ROW,
        ROW + b"\n",
        ROW + b"\r\n",
        ROW + b"\n\n \r\n\t\n",
        BOM + ROW + b"\n",
        b"  " + ROW + b"  \n",
    ],
    ids=["no newline", "newline", "CRLF", "blank last lines", "BOM", "blanks around"],
)
def test_a_file_of_one_row(content):
    [row] = rows(content)
    assert (row.number, row.custom_id, row.url, row.model) == (1, "1", "/v1/responses", "m")
    assert row.has_body


@pytest.mark.parametrize(
    "content", [b"", b"\n", BOM, BOM + b"\r\n\r\n", b" \n"], ids=["", "line", "bom", "bom+", "sp"]
)
def test_a_file_of_no_rows(content):
    assert rows(content) == []
    assert rewritten(content) == b""


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"[]", 1),
        (b'"text"', 1),
        (b"1", 1),
        (b"null", 1),
        (ROW + b"\n{", 2),
        (ROW + b"\n" + ROW + b" " + ROW, 2),
        (ROW + b"\r" + ROW, 1),
        (ROW.replace(b"m", b"m\r", 1), 1),
        (ROW.replace(b'"m"', b'"a\rb"'), 1),
        (ROW + b"\n" + ROW.replace(b'"m"', b'"\xff"'), 2),
        (ROW.replace(b'"m"', b"NaN"), 1),
        (ROW + b",\n", 1),
        (b"[" * 100_000, 1),
        (ROW.decode().encode("utf-16"), 1),
        (b"\x1f\x8b\x08\x00" + ROW, 1),
        (ROW + b"\n\n\n" + ROW, 2),
        (ROW + b"\n" + BOM + b" \n" + ROW, 2),
    ],
)
def test_a_line_that_is_no_row_is_named(content, line):
    assert refusal(content).startswith(f"line {line}")


def test_a_key_that_stands_twice_is_named():
    assert "line 2: the key 'url' stands twice" in refusal(
        ROW + b"\n" + ROW.replace(b'"custom_id"', b'"url"')
    )
    assert "'model'" in refusal(ROW.replace(b'"m"', b'"m", "model": "dear"'))
    # The same key in other spelling.
    assert "'model'" in refusal(ROW.replace(b'"m"', b'"m", "\\u006dodel": "dear"'))


def test_a_line_that_is_too_long_is_not_read_to_its_end():
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer) -> int:
            buffer[:] = b"x" * len(buffer)
            self.given += len(buffer)
            return len(buffer)

    endless = Endless()
    with pytest.raises(InvalidRequest, match="line 1 is too long: 1000 bytes are allowed"):
        list(jsonl.lines(io.BufferedReader(endless), 1000))
    assert endless.given < 100_000


def test_the_number_in_the_message_is_of_the_line_and_not_of_the_row():
    assert refusal(ROW + b"\n" + b"x" * 200, 150) == "line 2 is too long: 150 bytes are allowed"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (
            b'{"url":"/v1/responses" ,"body" : {"n":12345678901234567890, "model"\t:\t"m"}}',
            b'{"url":"/v1/responses" ,"body" : {"n":12345678901234567890, "model"\t:\t"up"}}',
        ),
        (
            b'{"body":{"model":"m","t":"\\u00fc \\ud83d\\ude00 \\/ \xc3\xbc"},"model":"m","url":"/x"}',  # noqa: E501
            b'{"body":{"model":"up","t":"\\u00fc \\ud83d\\ude00 \\/ \xc3\xbc"},"model":"m","url":"/v1/x"}',  # noqa: E501
        ),
        (
            b'{"body":{"a":{"model":"m"},"f":1.10e+05},"url":"\\/v1\\/responses"}',
            b'{"body":{"model": "up","a":{"model":"m"},"f":1.10e+05},"url":"\\/v1\\/responses"}',
        ),
        (b'{"url":"/x","body":{}}', b'{"url":"/v1/x","body":{"model": "up"}}'),
        (b'{"url":"/x","body":{ }}', b'{"url":"/v1/x","body":{"model": "up" }}'),
        (
            b'{"url":"/v1/x","body":{"model":null,"lone":"\\ud800"}}',
            b'{"url":"/v1/x","body":{"model":"up","lone":"\\ud800"}}',
        ),
        (b'{"url":"/v1/x","body":{"model":7}}', b'{"url":"/v1/x","body":{"model":"up"}}'),
        (
            b'{"url":"/v1/x","body":{"model":{"a":"model"}}}',
            b'{"url":"/v1/x","body":{"model":"up"}}',
        ),
    ],
    ids=["numbers", "escapes", "missing", "empty body", "blank body", "null", "number", "object"],
)
def test_only_the_model_and_the_url_change(row, wanted):
    assert rewritten(row) == wanted
    json.loads(wanted)


@pytest.mark.parametrize("body", ["[]", "[1]", '"text"', "5", "null", "true"])
def test_a_body_that_is_no_object_stays(body):
    row = b'{"url":"/v1/x","body":%s}' % body.encode()
    assert not rows(row)[0].has_body
    assert rewritten(row) == row


@pytest.mark.parametrize("url", ["5", "null", "[]", "{}"])
def test_a_url_that_is_no_text_stays(url):
    row = b'{"url":%s,"body":{"model":"m"}}' % url.encode()
    assert rewritten(row) == row.replace(b'"m"', b'"up"')


def test_a_model_name_is_escaped():
    text = rewritten(ROW, 'a"b\\ü')
    assert json.loads(text)["body"]["model"] == 'a"b\\ü'


def test_line_ends_and_a_missing_last_newline_stay_and_the_mark_goes():
    content = BOM + ROW + b"\r\n" + ROW + b"\n" + ROW
    assert rewritten(content) == content.removeprefix(BOM).replace(b'"m"', b'"up"')


def test_blank_last_lines_are_left_out():
    assert rewritten(ROW + b"\n\n\r\n") == ROW.replace(b'"m"', b'"up"') + b"\n"


@pytest.mark.parametrize(
    "line",
    [b"", b"no json\n", b'{"body":{"model":"x","model":"y"}}\n', b"\n", b"\xff\xfe\n", b"{\n"],
)
def test_a_file_that_nobody_checked_keeps_lines_that_are_no_rows(line):
    content = ROW + b"\n" + line + ROW
    wanted = ROW.replace(b'"m"', b'"up"')
    assert leniently(content) == wanted + b"\n" + line + wanted


@pytest.mark.parametrize(
    ("first", "wanted"),
    [(ROW, ROW.replace(b'"m"', b'"up"')), (b"no json\n", b"no json\n"), (b"\xff\n", b"\xff\n")],
    ids=["a row", "no row", "no UTF-8"],
)
def test_the_mark_of_a_file_that_nobody_checked_goes_too(first, wanted):
    assert leniently(BOM + first) == wanted


def test_a_mark_elsewhere_than_at_the_beginning_is_the_upstreams_to_judge():
    assert leniently(b"no json\n" + BOM + b"no json") == b"no json\n" + BOM + b"no json"


def test_without_a_model_the_rows_keep_their_own():
    unnamed = b'{"url":"/x","body":{}}'
    assert rewritten(ROW + b"\n" + unnamed, model="") == (
        ROW + b"\n" + unnamed.replace(b"/x", b"/v1/x")
    )


@pytest.mark.parametrize(
    ("line", "models"),
    [
        (b'{"body":{"model":"x","model":"y"}}', ["x", "y"]),
        (b'{"body":{"model":"x"},"body":{"model":"y"}}', ["x", "y"]),
        (b'{"n":NaN,"body":{"model":"x"}}', ["x"]),
        (b'{"t":"a\tb","body":{"model":"x"}}', ["x"]),
        (b'\xef\xbb\xbf{"n":NaN,"body":{"model":"x"}}', ["x"]),
        (b'{"t":"\xff","body":{"model":"x"}}', ["x"]),
        (b'{"body":[{"model":"x"}]}', []),
        (b'{"model":"x"}', []),
        (b"[]", []),
        (b"{", []),
        (b"", []),
    ],
)
def test_what_a_lenient_reader_may_take_for_the_model(line, models):
    assert jsonl.models_of(line) == models


@pytest.mark.parametrize(
    "encoding",
    ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_model_in_another_encoding_is_seen_in_every_line(encoding, end):
    text = end.join('{"body":{"model":"M","model":"ü"}}'.replace("M", model) for model in "abc")
    found = list(jsonl.lines(io.BytesIO(text.encode(encoding)), 1000))
    assert [set(map(str, jsonl.models_of(line))) for line in found] == [{m, "ü"} for m in "abc"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-32-be"])
def test_broken_bytes_in_another_encoding_hide_no_model(encoding):
    """Half a surrogate pair, which a strict reader stops at."""
    text = '{"t":"\ud800","body":{"model":"x"}}'
    assert set(jsonl.models_of(text.encode(encoding, "surrogatepass"))) == {"x"}


def test_a_line_too_deep_to_tell_its_model_is_refused():
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        jsonl.models_of(b'{"body":' * 100_000)


@pytest.mark.parametrize("how", [rewritten, leniently])
def test_a_deep_row_is_named_with_the_limit(how):
    def row(levels: int) -> bytes:
        return ROW[:-1] + b', "x": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}\n"

    assert how(ROW + b"\n" + row(100))
    with pytest.raises(InvalidRequest) as refusal:
        how(ROW + b"\n" + row(101))
    assert refusal.value.message == "line 2: is nested more than 100 levels deep"
    assert (refusal.value.param, refusal.value.code) == ("file", "invalid_json_line")


# Whatever a row holds, the rewrite changes two values and nothing else.

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=6), inner, max_size=3
        )
    ),
    max_leaves=8,
)
OLD_MODEL, NEW_MODEL = '"old \\u00fc model"', json.dumps("new model")
OLD_URL, NEW_URL = '"/embeddings"', '"/v1/embeddings"'


@st.composite
def written_rows(draw) -> tuple[str, str]:
    """A row's text, and the same with the new model and url."""
    blank = st.text(alphabet=" \t", max_size=2)
    is_ascii = draw(st.booleans())

    def written(members: list[tuple[str, str]]) -> str:
        parts = [
            f"{draw(blank)}{json.dumps(key, ensure_ascii=is_ascii)}{draw(blank)}:"
            f"{draw(blank)}{value}{draw(blank)}"
            for key, value in draw(st.permutations(members))
        ]
        return "{" + ",".join(parts) + "}"

    def others(*taken: str) -> list[tuple[str, str]]:
        keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
            lambda key: key not in taken
        )
        found = draw(st.dictionaries(keys, values, max_size=3))
        return [(key, json.dumps(v, ensure_ascii=is_ascii)) for key, v in found.items()]

    body = written([("model", OLD_MODEL), *others("model")])
    row = written([("url", OLD_URL), ("body", body), *others("url", "body")])
    # The two texts are odd enough to stand nowhere else.
    if row.count(OLD_MODEL) != 1 or row.count(OLD_URL) != 1:
        row = written([("url", OLD_URL), ("body", '{"model":' + OLD_MODEL + "}")])
    return row, row.replace(OLD_MODEL, NEW_MODEL).replace(OLD_URL, NEW_URL)


@given(
    st.lists(st.tuples(written_rows(), st.sampled_from(["\n", "\r\n"])), min_size=1, max_size=4),
    st.booleans(),
    st.booleans(),
)
def test_every_other_byte_stays(found, ends, marked):
    old = "".join(row[0] + end for row, end in found)
    new = "".join(row[1] + end for row, end in found)
    if not ends:
        old, new = re.sub(r"\r?\n\Z", "", old), re.sub(r"\r?\n\Z", "", new)
    content = (BOM if marked else b"") + old.encode()
    assert rewritten(content, "new model") == new.encode()
    assert leniently(content, "new model") == new.encode()


@given(
    st.lists(
        st.sampled_from(
            [ROW, BOM, "é日🦉".encode(), b"\n", b"\r\n", b"\r", b"\xe2\x80\xa8", b"x" * 20]
        ),
        max_size=20,
    ).map(b"".join),
    st.integers(1, 30),
)
def test_lines_are_the_same_however_the_file_is_read(content, size):
    """Only "\\n" ends a line, and a character may lie across two reads."""
    piecemeal = io.BufferedReader(io.BytesIO(content), buffer_size=size)
    found = list(jsonl.lines(piecemeal, 1024 * 1024))
    assert b"".join(found) == content
    assert found == re.findall(rb"[^\n]*\n|[^\n]+\Z", content)


@given(st.binary(max_size=200))
def test_a_file_that_is_anything_at_all(content):
    with contextlib.suppress(InvalidRequest):
        rewritten(content)
    leniently(content)


@given(st.lists(st.sampled_from([b"{}", b"\n", b"\r\n", b" ", ROW, BOM, b"[", b'"']), max_size=12))
def test_a_file_that_is_nearly_right(pieces):
    content = b"".join(pieces)
    try:
        found = rows(content)
    except InvalidRequest:
        return
    assert b"".join(jsonl.rewrite(found, "up", openai_url)).count(b'"up"') == content.count(ROW)
