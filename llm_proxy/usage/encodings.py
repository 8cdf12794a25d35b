"""The tokenizers of OpenAI's models, from the tables that ship with this package."""

import functools
import os
import pathlib
from collections.abc import Callable

TABLES = pathlib.Path(__file__).parent / "tables"

Encoder = Callable[[str], int]

# The older models; all others, of every maker, are counted like the newer ones, which comes nearest.
_CL100K = ("gpt-4", "gpt-3.5", "gpt-35", "text-embedding-", "davinci-002", "babbage-002")
_O200K = ("gpt-4o", "gpt-4.1", "gpt-4.5")


class TablesMissing(OSError):
    """A table is not where it was installed, or is not the one it should be."""


def encoding_of(model: str) -> str:
    """The name of the encoding that a model's tokens are counted with."""
    # Gateways put the maker in front, fine-tuned models begin with `ft:`.
    name = model.rpartition("/")[2].removeprefix("ft:")
    return "cl100k_base" if name.startswith(_CL100K) and not name.startswith(_O200K) else "o200k_base"


@functools.cache
def load(name: str) -> Encoder:
    """What counts the tokens of a text; the first time takes a few tenths of a second and tens of MB.

    Raises:
        TablesMissing: the table is gone or spoilt; it is never fetched.
    """
    # Here, so that a process that never counts never pays for it.
    import tiktoken
    import tiktoken.load

    os.environ["TIKTOKEN_CACHE_DIR"] = str(TABLES)
    # Without a deadline of any kind, this would fetch what it does not find in the folder.
    vars(tiktoken.load)["read_file"] = _refuse
    encode = tiktoken.get_encoding(name).encode_ordinary
    return lambda text: len(encode(text))


def _refuse(place: str) -> bytes:
    raise TablesMissing(f"The table {place} is not in {TABLES}, where it ships. Install the package anew.")
