"""The scanner sees the model that every reader of a form would see, or refuses the form."""

import email
import email.utils
import itertools
import tracemalloc
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_proxy.errors import ApiError
from llm_proxy.proxy.multipart import LARGEST_HEAD, LARGEST_MODEL, ModelScanner, boundary_of

BOUNDARY = b"b0und"
CRLF = b"\r\n"
FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="a.mp3"'
MODEL_HEAD = b'Content-Disposition: form-data; name="model"'

# Model, duplicated, finished; None when the form is refused.
Outcome = tuple[str | None, bool, bool] | None


def fed(chunks: Iterable[bytes], boundary: bytes = BOUNDARY) -> Outcome:
    scanner = ModelScanner(boundary)
    try:
        for chunk in chunks:
            scanner.feed(chunk)
    except ApiError as error:
        assert (error.code, error.status) == ("bad_request", 400)
        return None
    return scanner.model, scanner.duplicated, scanner.finished


def pieces(body: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    return (body[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(body)]))


def in_chunks(body: bytes, size: int) -> Iterator[bytes]:
    return (body[at : at + size] for at in range(0, len(body), size))


def in_every_way(body: bytes) -> Outcome:
    """What comes of a body, which must be the same whole, cut anywhere in two, or byte by byte."""
    outcome = fed([body])
    assert fed(in_chunks(body, 1)) == outcome
    for cut in range(len(body) + 1):
        assert fed([body[:cut], b"", body[cut:]]) == outcome
    return outcome


def form(*parts: tuple[bytes, bytes]) -> bytes:
    """A whole body of parts, each a head with its data."""
    opened = (b"--b0und\r\n" + head + b"\r\n\r\n" + data + CRLF for head, data in parts)
    return b"".join(opened) + b"--b0und--\r\n"


FIELD = (b'Content-Disposition: form-data; name="language"', b"en")
FILE = (FILE_HEAD + b"\r\nContent-Type: audio/mpeg", b"\x00\xff\r\n\n\rID3")
MODEL = (MODEL_HEAD, b"whisper-1")


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=x", b"x"),
        ("multipart/form-data;boundary=x", b"x"),
        ("Multipart/FORM-Data ; BOUNDARY=aB", b"aB"),
        ('multipart/form-data; boundary="x"', b"x"),
        ('multipart/form-data; boundary="=_(a,b)/c:d?e"', b"=_(a,b)/c:d?e"),
        ("multipart/form-data; boundary=*****", b"*****"),
        ("multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW", b"----WebKitFormBoundary7MA4YWxkTrZu0gW"),
        ("multipart/form-data; charset=UTF-8; boundary=x;", b"x"),
        ('multipart/form-data; boundary=x; charset="us-ascii"', b"x"),
        ("multipart/form-data; boundary=" + "x" * 70, b"x" * 70),
        (" multipart/form-data; boundary=x ", b"x"),
        ("", None),
        ("application/json", None),
        ("application/json; x=multipart/form-data; boundary=x", None),
        ("multipart/mixed; boundary=x", None),
        ("multipart/form", None),
    ],
)
def test_the_boundary_is_read_from_the_content_type_of_a_form(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "content_type",
    [
        pytest.param("multipart/form-data", id="none"),
        pytest.param("multipart/form-data; boundary=", id="empty"),
        pytest.param('multipart/form-data; boundary=""', id="empty-quoted"),
        pytest.param("multipart/form-data; boundary", id="no-value"),
        pytest.param("multipart/form-data; boundary=" + "x" * 71, id="too-long"),
        pytest.param("multipart/form-data; boundary=x; boundary=y", id="twice"),
        pytest.param("multipart/form-data; boundary=x; Boundary=x", id="twice-in-other-case"),
        pytest.param("multipart/form-data; boundary=x; boundary*=utf-8''y", id="ext-value"),
        pytest.param("multipart/form-data; boundary*0=x; boundary*1=y", id="continued"),
        pytest.param("multipart/form-data; boundary=x; boundary*0=y", id="continued-besides"),
        pytest.param("multipart/form-data; boundary = x", id="spaces-around-="),
        pytest.param("multipart/form-data; boundary=x y", id="space"),
        pytest.param('multipart/form-data; boundary="x y"', id="space-quoted"),
        pytest.param('multipart/form-data; boundary="x "', id="space-at-the-end"),
        pytest.param('multipart/form-data; boundary="x\\y"', id="escape"),
        pytest.param('multipart/form-data; boundary="x', id="unclosed"),
        pytest.param('multipart/form-data; boundary="x"y', id="after-the-quotes"),
        pytest.param('multipart/form-data; boundary=x"y"', id="quotes-inside"),
        pytest.param("multipart/form-data; boundary=x, multipart/form-data; boundary=y", id="two-headers-in-one"),
        pytest.param("multipart/form-data; boundary=x,y", id="comma-without-quotes"),
        pytest.param("multipart/form-data boundary=x", id="no-semicolon"),
        pytest.param("multipart/form-data;; boundary=x", id="two-semicolons"),
        pytest.param("multipart/form-data, text/plain; boundary=x", id="two-types"),
        pytest.param("multipart/form-datax; boundary=x", id="longer-type"),
        pytest.param("multipart/form-data; boundary=x\u00e9", id="beyond-ASCII"),
        pytest.param("multipart/form-data; boundary=x\udcff", id="not-UTF-8"),
        pytest.param("multipart/form-data; boundary=x; charset=utf-16", id="charset-that-changes-names"),
        pytest.param("multipart/form-data; boundary=x; charset=utf-7", id="charset-that-hides-names"),
    ],
)
def test_a_form_without_one_boundary_that_everyone_reads_alike_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError) as refusal:
        boundary_of(content_type)
    assert refusal.value.code == "bad_request"


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        pytest.param(form(MODEL), ("whisper-1", False, True), id="model"),
        pytest.param(form(MODEL, FILE), ("whisper-1", False, True), id="model-before-file"),
        pytest.param(form(FIELD, FILE, MODEL), ("whisper-1", False, True), id="model-last"),
        pytest.param(form(FIELD, FILE), (None, False, True), id="no-model"),
        pytest.param(form(MODEL, FILE, (MODEL_HEAD, b"gpt-4")), ("whisper-1", True, True), id="two-models"),
        pytest.param(form(MODEL, MODEL), ("whisper-1", True, True), id="the-same-model-twice"),
        pytest.param(form(MODEL, MODEL, MODEL), ("whisper-1", True, True), id="three-models"),
        pytest.param(form((MODEL_HEAD, b"")), ("", False, True), id="empty-model"),
        pytest.param(form((MODEL_HEAD, b" a\r\n\nb\r ")), (" a\r\n\nb\r ", False, True), id="nothing-is-stripped"),
        pytest.param(form((MODEL_HEAD, "modèle".encode())), ("modèle", False, True), id="UTF-8"),
        pytest.param(form((FILE_HEAD, b"")), (None, False, True), id="empty-file"),
        pytest.param(b"--b0und--", (None, False, True), id="no-parts"),
        pytest.param(CRLF + form(MODEL), ("whisper-1", False, True), id="CRLF-before"),
        pytest.param(form(MODEL).removesuffix(CRLF), ("whisper-1", False, True), id="no-CRLF-after"),
        pytest.param(form(MODEL) + b" \r\n\n\t", ("whisper-1", False, True), id="blanks-after"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und \t\r\n"), ("whisper-1", False, True), id="padding"),
        pytest.param(b"", (None, False, False), id="nothing"),
        pytest.param(form(MODEL)[:-4], ("whisper-1", False, False), id="cut-before-the-end"),
        pytest.param(form(MODEL)[:-12], (None, False, False), id="cut-before-the-boundary"),
    ],
)
def test_the_model_of_a_form_is_seen_however_it_is_cut(body: bytes, outcome: Outcome) -> None:
    assert in_every_way(body) == outcome


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b'content-disposition:FORM-DATA;NAME="model"', id="any-case"),
        pytest.param(b"Content-Disposition: form-data; name=model", id="token"),
        pytest.param(b'Content-Disposition:\tform-data ;\t name="model" ', id="white-space"),
        pytest.param(b'Content-Disposition: form-data; name="model";', id="semicolon-at-the-end"),
        pytest.param(MODEL_HEAD + b"; size=9", id="other-parameter"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Type: text/plain", id="text"),
        pytest.param(b"Content-Type: text/plain; charset=UTF-8\r\n" + MODEL_HEAD, id="charset-first"),
        pytest.param(
            MODEL_HEAD + b"\r\nContent-Type: text/plain; charset=ISO-8859-1\r\nContent-Transfer-Encoding: 8bit", id="Java"
        ),
        pytest.param(MODEL_HEAD + b"\r\nContent-Length: 9", id="length"),
        pytest.param(MODEL_HEAD + b"\r\ncontent-transfer-encoding: BINARY", id="binary"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Transfer-Encoding: 7bit", id="7bit"),
        pytest.param(MODEL_HEAD + b"\r\nX-Note: yes", id="other-header"),
    ],
)
def test_the_ways_in_which_clients_write_the_head_of_the_model_are_read(head: bytes) -> None:
    assert in_every_way(form((head, b"whisper-1"))) == ("whisper-1", False, True)


@pytest.mark.parametrize(
    "parameters",
    [
        b'name="model[]"',
        b'name="models"',
        b'name="x-model"',
        b'name="metadata[model]"',
        b'name=""',
        b'name="a\\"b"',
        b'name="%6dodels"',
        b'name="file"; filename="model"',
        b'name="file"; filename=""',
        b'name="file"; filename="C:\\new\\a.mp3"',
        b'name="file"; filename="say \\"hi\\"; bye.mp3"',
        b'name="file"; filename="\xff.mp3"',
        b"name=file; filename=a.mp3; filename*=utf-8''a%20b.mp3",
        'name="größe"; filename="größe.mp3"'.encode(),
    ],
    ids=ascii,
)
def test_other_parts_are_not_the_model(parameters: bytes) -> None:
    other = (b"Content-Disposition: form-data; " + parameters, b"gpt-4")
    assert in_every_way(form(other)) == (None, False, True)
    assert fed([form(MODEL, other)]) == ("whisper-1", False, True)


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param(b'name="Model"', id="other-case"),
        pytest.param(b'name=" model"', id="space-before"),
        pytest.param(b'name="model\t"', id="tab-after"),
        pytest.param(b'name="model\xc2\xa0"', id="no-break-space"),
        pytest.param(b'name="\xef\xbb\xbfmodel"', id="byte-order-mark"),
        pytest.param(b'name="mod\\el"', id="escape"),
        pytest.param(b'name="\\"model\\""', id="quotes-in-quotes"),
        pytest.param(b"name='model'", id="single-quotes"),
        pytest.param(b'name="<model>"', id="angle-brackets"),
        pytest.param(b'name="%6dodel"', id="percent"),
        pytest.param(b'name="%6D%6f%64%65%6C"', id="percent-throughout"),
        pytest.param(b'name="%4Dodel"', id="percent-other-case"),
        pytest.param(b'name="model%0D%0A"', id="percent-line-end"),
        pytest.param(b'name="%6\\dodel"', id="percent-escaped"),
        pytest.param(b"name*=utf-8''model", id="ext-value"),
        pytest.param(b"name=a; name*=utf-8''model", id="ext-value-besides"),
        pytest.param(b"name*=utf-8''other", id="ext-value-of-another"),
        pytest.param(b"name*0=mod; name*1=el", id="continued"),
        pytest.param(b"name=a; name*0*=utf-8''model", id="continued-ext-value"),
        pytest.param(b'name="=?utf-8?q?model?="', id="encoded-word"),
        pytest.param(b'name="_charset_"', id="charset-of-the-parts-to-come"),
        pytest.param(b'name="model\xff"', id="not-UTF-8"),
        pytest.param(b'name="model\x00"', id="NUL"),
        pytest.param(b'name="a"; name="model"', id="two-names"),
        pytest.param(b'name="model"; Name="a"', id="two-names-in-other-case"),
        pytest.param(b'filename="a"; filename="b"; name="c"', id="two-filenames"),
        pytest.param(b'xname="model"; name="a"', id="name-within-a-name"),
        pytest.param(b'name="a"; filename="x\\"; name=model; y=\\""', id="hidden-from-those-who-know-escapes"),
        pytest.param(b'name="a"; filename="; name=model"', id="hidden-from-those-who-know-quotes"),
        pytest.param(b'filename=" name = model"; name="a"', id="hidden-with-spaces"),
        pytest.param(b'name="a\\"; NAME*=model; y=\\""', id="hidden-in-the-name"),
        pytest.param(b'name = "model"', id="spaces-around-="),
        pytest.param(b'name="model', id="unclosed"),
        pytest.param(b'name="model\\"', id="unclosed-by-an-escape"),
        pytest.param(b'name="model"x', id="after-the-quotes"),
        pytest.param(b'name=mod"el"', id="quotes-inside"),
        pytest.param(b"name=mod el", id="space-without-quotes"),
        pytest.param(b"name=", id="no-value"),
        pytest.param(b"name", id="no-="),
        pytest.param(b'; name="model"', id="two-semicolons"),
        pytest.param(b'filename="model"', id="no-name"),
        pytest.param(b'name="model"; filename="a.mp3"', id="model-with-a-filename"),
        pytest.param(b'name="model"; filename=""', id="model-with-an-empty-filename"),
        pytest.param(b"name=model; filename*=utf-8''a", id="model-with-an-ext-filename"),
        pytest.param(b"name=model; filename*0=a", id="model-with-a-continued-filename"),
    ],
)
def test_a_name_that_some_reader_takes_for_model_is_refused(parameters: bytes) -> None:
    other = (b"Content-Disposition: form-data; " + parameters, b"gpt-4")
    assert in_every_way(form(other)) is None
    assert fed([form(MODEL, other)]) is None


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="no-headers"),
        pytest.param(b"Content-Type: text/plain", id="no-disposition"),
        pytest.param(b"Content-Disposition:", id="empty-disposition"),
        pytest.param(b'Content-Disposition: name="a"', id="no-type"),
        pytest.param(b'Content-Disposition: attachment; name="model"', id="other-type"),
        pytest.param(b'Content-Disposition: form-data, form-data; name="model"', id="two-types"),
        pytest.param(b'Content-Disposition : form-data; name="model"', id="space-before-colon"),
        pytest.param(b' Content-Disposition: form-data; name="model"', id="space-before-the-first-header"),
        pytest.param(FILE_HEAD + CRLF + MODEL_HEAD, id="two-dispositions"),
        pytest.param(FILE_HEAD + b"\r\ncontent-disposition: form-data; name=a", id="two-dispositions-in-other-case"),
        pytest.param(b"Content-Disposition: form-data;\r\n name=model", id="folded"),
        pytest.param(FILE_HEAD + b'\r\n\tname="model"', id="folded-with-a-tab"),
        pytest.param(FILE_HEAD + b"\r\nno colon", id="no-colon"),
        pytest.param(FILE_HEAD + b"\r\n: no name", id="no-header-name"),
        pytest.param(FILE_HEAD + b"\r\n--b0und", id="boundary-in-the-head"),
        pytest.param(FILE_HEAD + b"\r\nX-A: --b0und", id="boundary-within-a-header"),
        pytest.param(FILE_HEAD + b"\r\n--a: b", id="header-like-a-boundary"),
        pytest.param(FILE_HEAD + b"\n" + MODEL_HEAD, id="LF"),
        pytest.param(FILE_HEAD + b"\r" + MODEL_HEAD, id="CR"),
        pytest.param(FILE_HEAD + b"\r\r\n" + MODEL_HEAD, id="CR-CRLF"),
        pytest.param(FILE_HEAD + b"\r\nX-A: b\r" + MODEL_HEAD, id="CR-in-another-header"),
        pytest.param(b"\n" + MODEL_HEAD, id="LF-first"),
        pytest.param(FILE_HEAD + b"\x0b", id="control-character"),
        pytest.param(FILE_HEAD + b"\r\nContent-Type: Multipart/mixed; boundary=in", id="nested-multipart"),
        pytest.param(FILE_HEAD + b"\r\nContent-Type: message/rfc822", id="nested-message"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Transfer-Encoding: base64", id="model-in-base64"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Transfer-Encoding: 7bit, base64", id="model-in-two-encodings"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Transfer-Encoding:", id="model-in-an-empty-encoding"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Encoding: gzip", id="model-compressed"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Type: application/json", id="model-in-JSON"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Type:", id="model-of-an-empty-type"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Type: text/plain; charset=utf-16", id="model-in-another-charset"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Type: text/plain; name=a", id="model-with-a-name-in-its-type"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Length: 4", id="model-longer-than-its-length"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Length: 6", id="model-shorter-than-its-length"),
        pytest.param(MODEL_HEAD + b"\r\nContent-Length: +5", id="model-with-a-length-that-is-no-number"),
    ],
)
def test_a_head_that_could_be_read_in_two_ways_is_refused(head: bytes) -> None:
    assert in_every_way(form((head, b"gpt-4"))) is None
    assert fed([form(FIELD, (head, b"gpt-4"))]) is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"preamble\r\n" + form(MODEL), id="preamble"),
        pytest.param(b" " + form(MODEL), id="space-before"),
        pytest.param(b"\n" + form(MODEL), id="LF-before"),
        pytest.param(CRLF + CRLF + form(MODEL), id="two-CRLF-before"),
        pytest.param(form(MODEL).replace(b"b0und", b"other"), id="other-boundary"),
        pytest.param(form(MODEL).replace(b"b0und", b"B0UND"), id="boundary-in-other-case"),
        pytest.param(b"b0und\r\n" + form(MODEL), id="boundary-without-dashes"),
        pytest.param(b"{}", id="JSON"),
        pytest.param(form(MODEL) + b"x", id="epilogue"),
        pytest.param(form(MODEL) + form((MODEL_HEAD, b"gpt-4")), id="a-second-form"),
        pytest.param(form(MODEL).removesuffix(CRLF) + b"-", id="three-dashes-at-the-end"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und\n"), id="LF-after-the-boundary"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und\rx"), id="CR-after-the-boundary"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"undX\r\n"), id="longer-boundary"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und-\r\n"), id="one-dash"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und-x\r\n"), id="dash-and-more"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und x\r\n"), id="junk-after-padding"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und\x0b\r\n"), id="other-padding"),
        pytest.param(form(MODEL).replace(b"und\r\n", b"und" + b" " * 200 + CRLF), id="endless-padding"),
        pytest.param(form(MODEL).replace(b"\r\n--", b"\n--"), id="LF-before-the-end"),
        pytest.param(form(MODEL).replace(b"\r\n--", b"\r--"), id="CR-before-the-end"),
        pytest.param(form(MODEL).replace(b"\r\n--", b"\n\r--"), id="LF-CR-before-the-end"),
        pytest.param(form(MODEL).replace(b"whisper-1\r\n", b""), id="no-CRLF-between-head-and-boundary"),
        pytest.param(form((FILE_HEAD, b"x\n--b0und\r\n" + MODEL_HEAD)), id="LF-before-a-part"),
        pytest.param(form((FILE_HEAD, b"x\r--b0und\r\n" + MODEL_HEAD)), id="CR-before-a-part"),
        pytest.param(form((FILE_HEAD, b"x--b0und\r\n" + MODEL_HEAD)), id="boundary-within-a-line"),
        pytest.param(form((FILE_HEAD, b"--b0und\r\n" + MODEL_HEAD)), id="boundary-right-after-the-head"),
        pytest.param(form((FILE_HEAD, b"x---b0und")), id="boundary-after-a-dash"),
        pytest.param(form((MODEL_HEAD, b"gpt--b0und")), id="boundary-in-the-model"),
        pytest.param(form((MODEL_HEAD, b"gpt\xff")), id="model-not-UTF-8"),
        pytest.param(form((MODEL_HEAD, b"gpt\xc3")), id="model-cut-within-a-character"),
        pytest.param(
            form((MODEL_HEAD + b"\r\nContent-Type: text/plain; charset=iso-8859-1", "modèle".encode())),
            id="model-beyond-ASCII-not-said-to-be-UTF-8",
        ),
    ],
)
def test_what_is_not_plainly_a_form_is_refused(body: bytes) -> None:
    assert in_every_way(body) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\r\n--b0un", id="beginning"),
        pytest.param(b"\r\n--b0unx\r\n", id="last-byte-differs"),
        pytest.param(b"\r\n--B0UND\r\n", id="other-case"),
        pytest.param(b"\r\n-b0und\r\n", id="one-dash"),
        pytest.param(b"\r\nb0und--\r\n", id="no-dashes"),
        pytest.param(b"\r\n- -b0und", id="space-between"),
        pytest.param(b"\r\n--\r\n--b0\r\n--", id="several-beginnings"),
        pytest.param(b"\r\n--b0\r\n--b0un\r\n--b0u", id="beginning-within-a-beginning"),
        pytest.param(b"\r\r\n\n\r", id="line-ends"),
        pytest.param(b"\r\n\r\n" + MODEL_HEAD + b"\r\n\r\ngpt-4", id="head-of-a-model"),
    ],
)
def test_what_only_looks_like_a_boundary_is_data(data: bytes) -> None:
    for body in (form((FILE_HEAD, data), MODEL), form((FILE_HEAD, data * 3), MODEL)):
        assert in_every_way(body) == ("whisper-1", False, True)


def test_a_boundary_of_dashes_is_found() -> None:
    body = form((FILE_HEAD, b"- -- --- -\r\n---\r\n-- -"), MODEL).replace(b"--b0und", b"-" * 12)
    assert fed([body], b"-" * 10) == fed(in_chunks(body, 1), b"-" * 10) == ("whisper-1", False, True)


def test_a_second_model_is_told_as_soon_as_its_head_ends() -> None:
    scanner = ModelScanner(BOUNDARY)
    scanner.feed(form(MODEL, FILE).removesuffix(b"--\r\n") + CRLF + MODEL_HEAD + b"\r\n\r")
    assert not scanner.duplicated
    scanner.feed(b"\n")
    assert (scanner.model, scanner.duplicated) == ("whisper-1", True)


def test_the_model_is_told_as_soon_as_its_boundary_is_there() -> None:
    scanner = ModelScanner(BOUNDARY)
    scanner.feed(b"--b0und\r\n" + MODEL_HEAD + b"\r\n\r\nwhisper-1\r\n--b0un")
    assert scanner.model is None
    scanner.feed(b"d")
    assert scanner.model == "whisper-1"


def test_a_head_that_ends_for_others_is_refused_before_it_ends_for_us() -> None:
    scanner = ModelScanner(BOUNDARY)
    scanner.feed(b"--b0und\r\n" + MODEL_HEAD)
    with pytest.raises(ApiError):
        scanner.feed(b"\n\ngpt-4")


@pytest.mark.parametrize("size", [1, 1000, 10**6], ids=["bytes", "1000", "whole"])
def test_a_head_of_16_kib_passes_and_a_larger_one_is_refused(size: int) -> None:
    fits = FILE_HEAD + b"\r\nX-A: " + b"x" * (LARGEST_HEAD - len(FILE_HEAD) - 7)
    assert fed(in_chunks(form((fits, b""), MODEL), size)) == ("whisper-1", False, True)
    assert fed(in_chunks(form((fits + b"x", b""), MODEL), size)) is None


@pytest.mark.parametrize("size", [1, 1000, 10**6], ids=["bytes", "1000", "whole"])
@pytest.mark.parametrize("filler", [b"x", b"\r", b"\n", b"-"], ids=["x", "CR", "LF", "dash"])
def test_a_value_of_1_kib_passes_and_a_larger_one_is_refused(filler: bytes, size: int) -> None:
    fits = filler * (LARGEST_MODEL - 1) + b"x"
    assert fed(in_chunks(form((MODEL_HEAD, fits)), size)) == (fits.decode(), False, True)
    assert fed(in_chunks(form((MODEL_HEAD, fits + b"x")), size)) is None


@pytest.mark.parametrize("data", [b"\x00", b"\r\n", b"\r\n--b0un", b"-"], ids=["zeros", "lines", "beginnings", "dashes"])
def test_a_large_file_does_not_fill_the_memory(data: bytes) -> None:
    opened = form(MODEL, (FILE_HEAD, b"")).removesuffix(b"\r\n--b0und--\r\n")
    chunk = data * (65536 // len(data))
    scanner = ModelScanner(BOUNDARY)
    tracemalloc.start()
    try:
        scanner.feed(opened)
        for _ in range(256):
            scanner.feed(chunk)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < LARGEST_HEAD
    assert peak < 4 * len(chunk)
    scanner.feed(b"\r\n--b0und--")
    assert (scanner.model, scanner.duplicated, scanner.finished) == ("whisper-1", False, True)


LIKE_A_BOUNDARY = [
    CRLF,
    b"\r",
    b"\n",
    b"-",
    b"--",
    BOUNDARY,
    b"--b0",
    b"\r\n--b0un",
    b"und",
    b"--b0unx",
    b" ",
    b"\r\n\r\n",
    MODEL_HEAD,
]
DATA = st.lists(st.sampled_from(LIKE_A_BOUNDARY) | st.binary(max_size=9), max_size=12).map(b"".join)
FILE_DATA = DATA.filter(lambda data: b"--b0und" not in data)
MODEL_DATA = st.text(st.sampled_from("ab-\r\n é"), max_size=30).map(str.encode)
PARTS = st.lists(
    st.tuples(st.just(FILE_HEAD), FILE_DATA)
    | st.tuples(st.just(b"Content-Disposition: form-data; name=note"), FILE_DATA)
    | st.tuples(st.just(MODEL_HEAD), MODEL_DATA),
    max_size=5,
)


@settings(deadline=None)
@given(PARTS, st.sampled_from([b"", CRLF]), st.sampled_from([b"", b" ", b"\t "]), st.data())
def test_every_cut_of_every_form_gives_what_the_form_says(
    parts: list[tuple[bytes, bytes]], before: bytes, padding: bytes, data: st.DataObject
) -> None:
    body = before + b"".join(b"--b0und" + padding + CRLF + head + b"\r\n\r\n" + value + CRLF for head, value in parts)
    body += b"--b0und--" + padding
    models = [value.decode() for head, value in parts if head == MODEL_HEAD]
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=20))
    expected = (models[0] if models else None, len(models) > 1, True)
    assert fed([body]) == fed(pieces(body, cuts)) == fed(in_chunks(body, 1)) == expected


LINES = [
    *LIKE_A_BOUNDARY,
    b"--b0und\r\n",
    b"\r\n--b0und\r\n",
    b"\r\n--b0und--",
    MODEL_HEAD + b"\r\n\r\n",
    FILE_HEAD + b"\r\n\r\n",
    b"Content-Type: text/plain\r\n",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=12).map(b"".join), st.data())
def test_every_cut_of_anything_gives_the_same(rest: bytes, data: st.DataObject) -> None:
    body = b"--b0und\r\n" + rest
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=20))
    assert fed(pieces(body, cuts)) == fed(in_chunks(body, 1)) == fed([body])


def models_by_email(body: bytes) -> list[bytes]:
    """The models that the standard library sees, which takes any line end, continued parameters, parts within parts."""
    message = email.message_from_bytes(b"Content-Type: multipart/form-data; boundary=b0und\r\n\r\n" + body)
    return [
        part.get_payload().encode("utf-8", "surrogateescape")
        for part in message.walk()
        if not part.is_multipart() and _name_by_email(part) == "model"
    ]


def _name_by_email(part: email.message.Message) -> str:
    return email.utils.collapse_rfc2231_value(part.get_param("name", "", header="content-disposition")).strip().lower()


HEADERS = st.sampled_from(
    [
        MODEL_HEAD,
        FILE_HEAD,
        b"Content-Disposition: form-data; name=Model",
        b"Content-Disposition: form-data; name*=utf-8''model",
        b"Content-Disposition: form-data; name*0=mod; name*1=el",
        b'Content-Disposition: form-data; name=a; filename="x\\"; name=model; y=\\""',
        b"Content-Disposition: attachment; name=model",
        b"Content-Type: message/rfc822",
        b"Content-Type: multipart/mixed; boundary=in",
        b"Content-Type: text/plain",
        b" name=model",
        b"--b0und",
    ]
)
ENDS = st.sampled_from([CRLF] * 9 + [b"\n", b"\r", b""])
VALUES = st.sampled_from(
    [b"a", b"gpt-4", b"\n", MODEL_HEAD + b"\r\n\r\nb", b"\r\n--b0un", b"\n--b0und\n", b"--in\r\n" + MODEL_HEAD]
)


@st.composite
def doubtful_forms(draw: st.DrawFn) -> bytes:
    body = b""
    for _ in range(draw(st.integers(1, 3))):
        body += b"--b0und" + draw(ENDS)
        for header in draw(st.lists(HEADERS, min_size=1, max_size=2)):
            body += header + draw(ENDS)
        body += draw(ENDS) + draw(VALUES) + draw(ENDS)
    return body + b"--b0und--"


@settings(deadline=None, max_examples=400)
@given(doubtful_forms())
@example(form((b"Content-Disposition: form-data; name=model", b"gpt-4"), FILE))
@example(form(FILE, FIELD))
def test_a_lenient_reader_sees_no_other_model_in_a_form_that_passes(body: bytes) -> None:
    outcome = fed([body])
    if outcome is None or not outcome[2] or outcome[1]:
        return
    assert models_by_email(body) == ([] if outcome[0] is None else [outcome[0].encode()])
