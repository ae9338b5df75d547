"""What a CSV file may hold: every trap by name, and for any bytes that no row is lost and none is made up."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.imports.failures import Unreadable
from domains.imports.place import import_key, place
from domains.imports.table import LONGEST, Header, header, rows_in
from domains.imports.values import Layout, ProcessMealShortsCsv, RowError
from flowdsl import Failure, Success

PLAIN = Layout(",", 2, 0, 1)


def read(content: bytes, limit: int = 1000) -> tuple[list[tuple[int, str, str]], list[tuple[int, str]]]:
    """Rows and bad lines of a whole file."""
    head = headed(content)
    found = rows_in(content[head.offset :], head.line, head.layout, limit, whole=True)
    assert head.offset + found.consumed == len(content)
    return [(one.line, one.short.order_id, one.short.sku) for one in found.rows], [(one.line, said(one)) for one in found.bad]


def said(error: RowError) -> str:
    return error.error.partition(":")[0]


def headed(content: bytes) -> Header:
    return header("s3://b/f.csv", content, whole=True).unwrap()


def refused(content: bytes, *, whole: bool = True) -> Unreadable:
    return header("s3://b/f.csv", content, whole=whole).failure()


# Traps


def test_a_byte_order_mark() -> None:
    assert read(b"\xef\xbb\xbforder_id,sku\n1,A\n") == ([(2, "1", "A")], [])


def test_line_breaks_inside_quotes() -> None:
    assert read(b'order_id,sku,note\n1,A,"one\ntwo\r\nthree"\n2,B,x\n') == ([(2, "1", "A"), (5, "2", "B")], [])


def test_carriage_returns_and_empty_lines() -> None:
    assert read(b"order_id,sku\r\n1,A\r\n\r\n   \r\n2,B\r\n") == ([(2, "1", "A"), (5, "2", "B")], [])


def test_quotes_inside_quotes_and_delimiters_inside_quotes() -> None:
    assert read(b'order_id,sku,note\n"1","A","he said ""no"", twice"\n') == ([(2, "1", "A")], [])


def test_a_quote_that_opens_nothing_is_a_character() -> None:
    assert read(b'order_id,sku,size\n1,A,5" pan\n2,B,6" pan\n') == ([(2, "1", "A"), (3, "2", "B")], [])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_header_says_the_delimiter_and_the_order_of_columns(delimiter: str) -> None:
    content = f"Reported{delimiter} SKU {delimiter}Order_ID\nx{delimiter} A {delimiter}1\n".encode()
    assert read(content) == ([(2, "1", "A")], [])


@pytest.mark.parametrize("content", [b"1,A\n2,B\n", b"order,sku\n1,A\n", b"order_id;article\n1;A\n"])
def test_a_missing_header(content: bytes) -> None:
    assert "has no column" in str(refused(content))


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file(content: bytes) -> None:
    assert "is empty" in str(refused(content))


def test_a_header_and_nothing_else() -> None:
    assert read(b"order_id,sku") == ([], [])


def test_a_column_twice() -> None:
    assert "2 columns sku" in str(refused(b"order_id,sku,SKU\n"))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("order_id,sku\n1,Ä\n".encode("utf-16"), "UTF-16"),
        ("order_id,sku\n".encode("utf-16-le"), "UTF-8"),
        (b"\x1f\x8b\x08rest", "compressed"),
        (b"PK\x03\x04rest", "spreadsheet"),
        (b"order_id,sk\xfc\n1,A\n", "UTF-8"),
        (b"order_id,sku\r1,A\r2,B\r", "CR alone"),
    ],
)
def test_another_kind_of_file_is_told_and_what_to_do(content: bytes, word: str) -> None:
    assert word in str(refused(content))


def test_a_first_line_without_end() -> None:
    assert "first line of more than" in str(refused(b"order_id,sku" + b"x" * LONGEST, whole=False))


def test_another_encoding_costs_the_lines_that_show_it() -> None:
    assert read("order_id,sku\n1,Ä\n2,B\n".encode("latin-1")) == ([(3, "2", "B")], [(2, "not UTF-8")])


@pytest.mark.parametrize("last", [b"2", b'"2","B', b"2,"])
def test_a_last_line_that_is_cut_off(last: bytes) -> None:
    rows, bad = read(b"order_id,sku\n1,A\n" + last)
    assert rows == [(2, "1", "A")]
    assert [line for line, _ in bad] == [3]


def test_a_last_line_without_a_line_break() -> None:
    assert read(b"order_id,sku\n1,A") == ([(2, "1", "A")], [])


def test_a_quote_that_is_never_closed_costs_its_line() -> None:
    many = b"".join(b"%d,B\n" % number for number in range(3, 40_000))
    rows, bad = read(b'order_id,sku\n1,A\n2,"B\n' + many, limit=10**6)
    assert bad == [(3, "a quote is opened and never closed")]
    assert len(rows) == 1 + 40_000 - 3


def test_two_quotes_that_are_never_closed_cost_their_lines() -> None:
    rows, bad = read(b'order_id,sku\n1,"A\n2,B\n3,"C\n4,D\n')
    assert rows == [(3, "2", "B"), (5, "4", "D")]
    assert [line for line, _ in bad] == [2, 4]


def test_a_huge_line_costs_itself() -> None:
    huge = b"1," + b"x" * (3 * LONGEST) + b"\n"
    assert read(b"order_id,sku\n" + huge + b"2,B\n") == ([(3, "2", "B")], [(2, f"longer than {LONGEST:,} bytes")])


def test_a_huge_line_that_is_not_here_yet_is_told() -> None:
    found = rows_in(b"2,B\n1," + b"x" * (LONGEST + 1), 2, PLAIN, 10, whole=False)
    assert (found.consumed, found.line, found.endless, len(found.rows)) == (4, 3, True, 1)


@pytest.mark.parametrize("cells", ["1,", ",A", "1,\x00A", "1," + "x" * 201, "1,A,B", "1"])
def test_a_row_that_is_none(cells: str) -> None:
    rows, bad = read(f"order_id,sku\n{cells}\n2,B\n".encode())
    assert rows == [(3, "2", "B")]
    assert [line for line, _ in bad] == [2]


# Any bytes

TEXT = st.text(st.sampled_from('1,"A\n\r é;'), max_size=60)


@given(TEXT, st.integers(1, 4))
def test_chunks_are_the_whole(text: str, limit: int) -> None:
    """However the file is cut into chunks, also in the middle of a line, the same rows come out of it."""
    content = b"order_id,sku\n" + text.encode()
    head = headed(content)
    body, whole = content[head.offset :], rows_in(content[head.offset :], head.line, PLAIN, 10**6, whole=True)
    rows, bad, at, line = [], [], 0, head.line
    while at < len(body):
        ahead = limit
        while True:  # a reader that gets a few bytes at a time
            found = rows_in(body[at : at + ahead], line, PLAIN, limit, whole=at + ahead >= len(body))
            if found.consumed or at + ahead >= len(body):
                break
            ahead += limit
        rows, bad, at, line = rows + found.rows, bad + found.bad, at + found.consumed, found.line
    assert (rows, bad, line) == (whole.rows, whole.bad, whole.line)


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1, max_size=9), st.text(max_size=9)), max_size=8
    )
)
def test_what_python_writes_is_read_back(cells: list[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("order_id", "sku", "note"), *((name, "A", note.replace("\x00", "")) for name, note in cells)])
    rows, bad = read(text.getvalue().encode("utf-8", "replace"))
    assert bad == []
    assert [order_id for _, order_id, _ in rows] == [name for name, _ in cells]


# Places


@pytest.mark.parametrize(
    "url",
    [
        "s3://kitchen/a/shorts.csv",
        "https://s3.amazonaws.com/kitchen/a/shorts.csv",
        "https://s3.eu-west-1.amazonaws.com/kitchen/a/shorts.csv",
        "https://kitchen.s3.amazonaws.com/a/shorts.csv",
        "https://kitchen.s3.eu-west-1.amazonaws.com/a/shorts%2Ecsv",
    ],
)
def test_a_file_has_one_place(url: str) -> None:
    assert import_key(ProcessMealShortsCsv(url)) == "s3://kitchen/a/shorts.csv"


@pytest.mark.parametrize(
    "url",
    [
        "", "shorts.csv", "s3://", "s3://kitchen", "s3://kitchen/", "s3://K/x.csv", "s3://kitchen/a//b", "s3://kitchen/../x", "ftp://h/x", "http://169.254.169.254/x/y",
        "https://s3.amazonaws.com.example/b/x.csv", "https://s3.amazonaws.com/kitchen/x.csv?X-Amz-Signature=1", "file:x.csv",
        "file://" + "host/x.csv",
        *(f"file://{path}" for path in ("/a/../b.csv", "/a/%2e%2e/b.csv", "/folder/")), "s3://kitchen/a\nb", "https://[bad/x",
    ],
)  # fmt: skip
def test_what_is_no_place_is_told(url: str) -> None:
    found = place(url)
    assert isinstance(found, Failure), found
    assert "s3://bucket/key" in str(found.failure())
    assert import_key(ProcessMealShortsCsv(url))


def test_a_file_on_disk() -> None:
    found = place("file://" + "/srv/imports/shorts%20of%20today.csv")
    assert isinstance(found, Success) and found.unwrap().key == "/srv/imports/shorts of today.csv"
