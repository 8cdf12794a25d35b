"""CSV is read back as it was meant, and runs nothing."""

import csv
import io

import pytest

from llm_proxy.spreadsheet import as_csv


def test_the_form_is_that_of_rfc_4180() -> None:
    rows = [{"name": 'say "hi", all', "n": 1, "more": "left out"}, {"name": "two\r\nlines", "n": None}, {"name": "ö", "n": -1.5}]
    assert as_csv(("name", "n"), rows) == 'name,n\r\n"say ""hi"", all",1\r\n"two\r\nlines",\r\nö,-1.5\r\n'


def test_without_rows_there_is_the_head() -> None:
    assert as_csv(("a", "b"), []) == "a,b\r\n"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "=cmd|' /C'!A0", '="a","b"'])
def test_a_formula_becomes_a_text(text: str) -> None:
    [_, [cell]] = csv.reader(io.StringIO(as_csv(("a",), [{"a": text}]), newline=""))
    assert cell == f"'{text}"


@pytest.mark.parametrize("text", ["", "a=1", "gpt-4o", "'quoted", " =1"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    [_, row] = csv.reader(io.StringIO(as_csv(("a", "b"), [{"a": text, "b": 1}]), newline=""))
    assert row == [text, "1"]
