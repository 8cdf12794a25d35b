"""The tables that ship are tiktoken's own, and nothing is ever fetched in their place."""

import hashlib
import inspect
import pathlib
import subprocess
import sys

import pytest
import tiktoken.load
from tiktoken_ext import openai_public

from llm_proxy.usage import encodings
from llm_proxy.usage.encodings import TABLES, TablesMissing, encoding_of, load

ROOT = pathlib.Path(__file__).parents[2]
TABLE_NAMES = {"9b5ad71b2ce5302211f9c61530b329a4922fc6a4", "fb374d419588a4632f3f557e76b4b70aebbca790"}


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", "o200k_base"),
        ("gpt-4o-mini-2024-07-18", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5.2", "o200k_base"),
        ("o1", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("o4-mini", "o200k_base"),
        ("chatgpt-4o-latest", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("ft:gpt-4o-mini:acme::1", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo-0125", "cl100k_base"),
        ("gpt-35-turbo", "cl100k_base"),
        ("openai/gpt-3.5-turbo", "cl100k_base"),
        ("ft:gpt-3.5-turbo:acme::1", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("mistral-large-latest", "o200k_base"),
        ("", "o200k_base"),
    ],
)
def test_every_model_has_its_encoding(model: str, encoding: str) -> None:
    assert encoding_of(model) == encoding


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_the_tables_are_the_ones_that_tiktoken_expects(name: str) -> None:
    source = inspect.getsource(getattr(openai_public, name))
    address = source.partition('"https://')[2].partition('"')[0]
    table = TABLES / hashlib.sha1(f"https://{address}".encode()).hexdigest()
    assert table.name in TABLE_NAMES
    assert f'expected_hash="{hashlib.sha256(table.read_bytes()).hexdigest()}"' in source


def test_texts_of_special_tokens_are_texts() -> None:
    assert load("o200k_base")("<|endoftext|>") > 1


def test_a_missing_table_is_not_fetched(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "TABLES", tmp_path)
    # tiktoken keeps what it has once loaded.
    monkeypatch.setattr("tiktoken.registry.ENCODINGS", {})
    with pytest.raises(TablesMissing, match="cl100k_base"):
        load.__wrapped__("cl100k_base")
    with pytest.raises(TablesMissing):
        tiktoken.load.read_file("https://example.test/table")
    assert not list(tmp_path.iterdir())


def test_a_process_that_never_counts_does_not_even_load_the_library() -> None:
    code = "import sys; import llm_proxy.server; sys.exit('tiktoken' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=30)
