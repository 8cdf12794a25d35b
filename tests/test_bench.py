"""`scripts/bench` and `scripts/profile`: figures are read, compared and shown as they were measured."""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from benchmarks import clients, provider, rows, table, wrk
from benchmarks.__main__ import arguments, turns_of
from benchmarks.cases import CALLS, all_cases
from benchmarks.machine import ROOT
from benchmarks.processes import Failed, Process, family, ticks_of
from benchmarks.profiler import Profile, Spent, report
from benchmarks.results import DIRECT, NGINX, PROXY, Bar, Row, Sample, median, number
from benchmarks.soak import Course
from stage.processes import environment

SAID = (
    "Running 5s test @ http://127.0.0.1:1/\n"
    "RESULT requests=50000 bytes=25000000 duration=5000000 connect=0 read=1 write=0 status=20 timeout=0 p50=640.0 p99=2150.5\n"
)


def test_what_wrk_says_is_read() -> None:
    load = wrk.parse(SAID)
    assert (load.requests, load.bytes, load.took, load.rate) == (50_000, 25_000_000, 5.0, 10_000.0)
    assert (load.p50, load.p99) == (0.64, 2.1505)
    assert load.errors == {"read": 1, "status": 20}


def test_wrk_without_a_result_is_a_failure_with_its_words() -> None:
    with pytest.raises(Failed, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_a_request_becomes_a_script_whatever_is_in_it() -> None:
    script = wrk.lua(wrk.Ask(headers={"Authorization": "Bearer x"}, body='{"a": "b\\n"}', pause=3))
    assert 'wrk.method = "POST"\nwrk.headers["Authorization"] = "Bearer x"\n' in script
    assert r'wrk.body = "{\"a\": \"b\\n\"}"' in script
    assert "function delay() return 3 end" in script
    assert "delay" not in wrk.lua(wrk.Ask())


@pytest.mark.parametrize(
    ("values", "middle"), [([3.0], 3.0), ([5.0, 1.0, 3.0], 3.0), ([1.0, 4.0], 2.5)], ids=["one", "three", "two"]
)
def test_the_median_is_of_each_figure_by_itself(values: list[float], middle: float) -> None:
    found = median([Sample(value, cpu=10 * value, errors=1, more={"p99": -value}) for value in values])
    assert found == Sample(middle, cpu=10 * middle, errors=len(values), more={"p99": -middle})


@pytest.mark.parametrize(
    ("bar", "figure", "verdict"),
    [
        pytest.param(Bar("value", 12_000), 12_000.0, "met", id="at least, just"),
        pytest.param(Bar("value", 12_000), 9_000.0, "missed by 25 %", id="at least, missed"),
        pytest.param(Bar("value", 12_000), 11_999.0, "missed by 1 %", id="missed by next to nothing"),
        pytest.param(Bar("cpu", 12, at_most=True), 12.0, "met", id="at most, just"),
        pytest.param(Bar("cpu", 12, at_most=True), 18.0, "missed by 50 %", id="at most, missed"),
        pytest.param(Bar("cpu", 12, at_most=True), -3.0, "met", id="below nothing, as noise makes it"),
        pytest.param(Bar("ratio", 0.12), None, "not measured", id="not measured"),
    ],
)
def test_a_bar_is_met_or_missed_by_so_much(bar: Bar, figure: float | None, verdict: str) -> None:
    assert bar.verdict(figure) == verdict


@pytest.mark.parametrize(
    ("proxy", "verdict"),
    [(15_000.0, "met"), (12_500.0, "met; missed by 17 %"), (6_000.0, "missed by 50 %; missed by 60 %")],
)
def test_a_row_tells_of_each_of_its_bars(proxy: float, verdict: str) -> None:
    bars = [Bar("value", 12_000, "/s", 15_000), Bar("ratio", 0.15, " of nginx")]
    row = Row("calls", "/s", Sample(proxy), Sample(100_000.0), bars)
    assert row.verdict() == verdict
    assert [bar.text() for bar in bars] == ["≥ 12,000/s (aim 15,000)", "≥ 0.15 of nginx"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(97_123.4, "97,123"), (123.4, "123"), (12.34, "12.3"), (0.1234, "0.123"), (0.0, "0"), (-7.25, "-7.25")],
)
def test_figures_have_the_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_differences_are_rows_where_both_sides_were_measured() -> None:
    figures = {
        "calls": {PROXY: Sample(12_000.0, cpu=80.0), NGINX: Sample(96_000.0, cpu=10.0), "LiteLLM": Sample(130.0)},
        "quota": {PROXY: Sample(11_500.0, cpu=84.8)},
        "events-off": {PROXY: Sample(13_000.0, cpu=76.5)},
        "latency": {
            subject: Sample(p50, more={"p50": p50, "p99": 3 * p50})
            for subject, p50 in ((PROXY, 0.3), (NGINX, 0.2), (DIRECT, 0.1))
        },
    }
    found = {row.title: row for row in rows.rows(figures, [figures])}
    assert found["CPU of quota over none"].proxy == Sample(pytest.approx(6.0))
    assert found["CPU of quota over none"].verdict() == "missed by 20 %"
    assert found["CPU of an event to the spool"].proxy == Sample(3.5)
    assert found["added p50, one connection"].proxy == Sample(pytest.approx(0.2))
    assert found["added p50, one connection"].nginx == Sample(pytest.approx(0.1))
    assert found["added p99, one connection"].verdict() == "met"
    assert found["calls, no quota"].ratio == 0.125
    assert found["calls, no quota"].others == {"LiteLLM": Sample(130.0)}
    assert "CPU of a router and a middleware, which calls bypass" not in found, "what was not measured has no row"


@pytest.mark.parametrize(
    ("costs", "result"),
    [
        ([3.0], "met"),
        ([3.0, 4.0, 3.5], "met"),
        ([3.0, -12.0, 20.0], "too noisy to tell (± 17.0)"),
        ([30.0, 20.0, 32.0], "missed by 500 %"),
    ],
    ids=["one turn", "steady", "all over the place", "far off"],
)
def test_a_difference_is_judged_turn_by_turn_and_only_where_noise_lets_it(costs: list[float], result: str) -> None:
    turns = [{"calls": {PROXY: Sample(1, cpu=80 + cost)}, "events-off": {PROXY: Sample(1, cpu=80)}} for cost in costs]
    [row] = [row for row in rows.rows({}, turns) if row.title == "CPU of an event to the spool"]
    assert row.verdict() == result


def test_samples_are_told_apart_by_turn() -> None:
    first, second, other = Sample(1.0), Sample(2.0), Sample(3.0)
    turns = turns_of({"calls": {PROXY: [first, second], NGINX: [other]}})
    assert turns == [{"calls": {PROXY: first, NGINX: other}}, {"calls": {PROXY: second}}]


def test_every_case_is_shown() -> None:
    shown = {row.case for row in rows.ROWS if isinstance(row, rows.Shown)}
    assert {case.name for case in all_cases()} - shown == {"router"}, "of which only the difference is"
    assert set(CALLS) <= shown


def test_the_table_lines_up_and_has_a_column_for_each_peer() -> None:
    row = Row(
        "calls", "/s", Sample(1500.0, 80.0, 75.5, errors=2), Sample(3000.0, 10.0), [Bar("value", 3000)], {"LiteLLM": Sample(130)}
    )
    text = table.rendered([row, Row("memory", "MiB", Sample(75.5))])
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == [*table.NAMES, "LiteLLM"]
    assert cells[2] == [
        "calls",
        "1,500 /s, 2 errors",
        "3,000 /s",
        "0.5",
        "80.0",
        "10.0",
        "75.5",
        "≥ 3,000",
        "missed by 50 %",
        "130 /s",
    ]
    assert cells[3] == ["memory", "75.5 MiB", *[""] * 8]


def test_a_run_replaces_the_one_between_the_markers() -> None:
    document = f"# Title\n\n{table.BEGIN}\nold | table\n{table.END}\n\nmore\n"
    again = table.rewritten(table.rewritten(document, "first"), "\nsecond\n")
    assert again == f"# Title\n\n{table.BEGIN}\nsecond\n{table.END}\n\nmore\n"
    with pytest.raises(ValueError, match="markers"):
        table.rewritten("# Title\n", "x")


def test_the_document_has_the_markers() -> None:
    document = (ROOT / "deploy" / "BENCHMARKS.md").read_text()
    assert table.rewritten(document, document.partition(table.BEGIN)[2].partition(table.END)[0]) == document


def test_growth_counts_from_when_the_first_quarter_is_over() -> None:
    course = Course([(1, 70.0), (2, 100.0), (3, 101.0), (4, 104.0)], 1000, 0)
    assert course.sample() == Sample(pytest.approx(4.0), rss=104.0)
    assert "1.0 min 70.0" in course.note() and "4.0 min 104.0" in course.note()


@pytest.mark.parametrize(
    ("got", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Le", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
    ],
    ids=["in the head", "in the body", "length", "before the last chunk", "chunked"],
)
def test_the_end_of_an_answer_is_found(got: bytes, whole: bool) -> None:
    assert clients.is_whole(got) == whole


def test_processor_time_is_read_whatever_a_process_is_called() -> None:
    assert ticks_of("7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 9 9 20 0 1 0 100 0 0") == 300


@pytest.mark.parametrize("silent", [False, True], ids=["with usage", "without"])
def test_a_stream_has_so_many_chunks_and_ends_as_openais_do(silent: bool) -> None:
    chunks = provider.chunks(10, silent)
    assert len(chunks) == 10
    data = [piece.partition(b"\r\n")[2].removeprefix(b"data: ").split(b"\n\n")[0] for piece in chunks]
    assert [int(piece.partition(b"\r\n")[0], 16) for piece in chunks] == [len(text) + 8 for text in data]
    assert ("usage" in json.loads(data[-2])) is not silent
    assert data[-1] == b"[DONE]" and chunks[-1].endswith(b"\r\n0\r\n\r\n")


async def test_the_streaming_provider_streams_again_on_the_same_connection() -> None:
    loop, wheel = asyncio.get_running_loop(), provider.Wheel(2, provider.chunks(5, False))
    server = await loop.create_server(lambda: provider.Stream(wheel), "127.0.0.1", 0)
    ask = clients.request(wrk.Ask(body="{}"))

    def twice() -> list[bytes]:
        with socket.create_connection(server.sockets[0].getsockname()) as connection:
            return [clients.exchange(connection, ask) for _ in range(2)]

    wheel.begin()
    first, second = await asyncio.to_thread(twice)
    assert first == second
    assert first.count(b"data: ") == 5
    wheel.end()
    server.close()
    await server.wait_closed()


def test_a_profile_is_told_by_unit_and_c_counts_for_its_caller() -> None:
    ours, theirs, builtin = (f"{ROOT}/llm_proxy/x.py", 3, "f"), ("/lib/rare.py", 1, "g"), ("~", 0, "<len>")
    stats = {
        ours: (100, 100, 0.001, 0.002, {}),
        theirs: (1, 1, 5.0, 5.0, {}),
        builtin: (400, 400, 0.004, 0.004, {ours: (400, 400, 0.004, 0.004)}),
    }
    profile = Profile(stats, 100)
    assert profile.modules() == {"llm_proxy/x.py": Spent(500, pytest.approx(0.005))}
    lines = list(report(profile, "call", 10))
    assert lines[0] == "100 × one call:     50.0 µs      5.0 calls"
    assert lines[-2:] == ["    40.0 µs      4.0 calls  <len>", "    10.0 µs      1.0 calls  llm_proxy/x.py:3 f"]


def installed(name: str) -> bool:
    return bool(shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"))


def run_bench(folder: pathlib.Path, *words: str, **env: str) -> "subprocess.Popen[str]":
    env = environment(
        PYTHONPATH=os.pathsep.join((str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests"))), TMPDIR=str(folder), **env
    )
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_without_its_tools_it_says_what_to_install(tmp_path: pathlib.Path) -> None:
    running = run_bench(tmp_path, PATH=str(tmp_path))
    _, said = running.communicate(timeout=20)
    assert running.returncode == 1
    assert "apt-get install" in said and "Traceback" not in said


@pytest.mark.skipif(not all(map(installed, ("nginx", "wrk"))), reason="nginx and wrk are not installed")
def test_a_short_run_prints_the_table_and_keeps_its_figures(tmp_path: pathlib.Path) -> None:
    # Real-time priority would stall the tests beside this one.
    (tmp_path / "chrt").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "chrt").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    running = run_bench(tmp_path, "--only", "start", "--rounds", "1", "--json", str(tmp_path / "kept.json"), PATH=path)
    said, told = running.communicate(timeout=60)
    assert running.returncode == 0, told
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert [row["title"] for row in kept["rows"]] == ["start to /ready", "resident at rest"]
    assert all(row["proxy"]["value"] > 0 for row in kept["rows"])
    assert kept["machine"]["priority"] == "ordinary"
    assert "| start to /ready  |" in said and kept["machine"]["processor"] in said


def test_a_case_that_is_not_known_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(["calls"]).parse_args(["--only", "nonsense"])
    assert "'calls'" in capsys.readouterr().err


def test_a_process_is_measured_with_its_children_and_ended(tmp_path: pathlib.Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); import time; time.sleep(60)'])"
    process = Process("parent", [sys.executable, "-c", code], min(os.sched_getaffinity(0)), tmp_path, {})
    end = time.monotonic() + 20
    while "1" not in process.log.read_text() and time.monotonic() < end:
        time.sleep(0.01)
    pids = family(process.pid)
    assert len(pids) == 2
    assert process.rss() > 5 and process.cpu_seconds() > 0
    process.stop()
    with pytest.raises(Failed, match="parent ended with exit code"):
        process.check()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pids[1], signal.SIGKILL)
