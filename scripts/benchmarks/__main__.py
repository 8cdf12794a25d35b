"""`scripts/bench`: every case three times, interleaved, in one table beside nginx."""

import argparse
import json
import os
import pathlib
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from benchmarks import peers, rows, soak, table
from benchmarks.cases import Bench, Case, all_cases
from benchmarks.machine import ROOT, cores, facts, program
from benchmarks.processes import Failed
from benchmarks.results import PROXY, Figures, Row, Sample, median, number
from benchmarks.scene import Scene

DOCUMENT = ROOT / "deploy" / "BENCHMARKS.md"
ROUNDS = 3

Samples = dict[str, dict[str, list[Sample]]]


def arguments(names: Sequence[str]) -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[*names, "soak"], metavar="CASE", help=f"one of: {', '.join(names)}; again for more"
    )
    parser.add_argument("--seconds", type=float, default=5, help="of load for each sample (default 5)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="samples of each case, whose median counts (default 3)")
    parser.add_argument(
        "--soak",
        type=float,
        default=0,
        metavar="MINUTES",
        help="after the cases, everything on for so long: memory must stay flat",
    )
    parser.add_argument("--with-peers", action="store_true", help="also LiteLLM and Portkey, which are installed into .bench/")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="keep every sample there")
    parser.add_argument("--write", action="store_true", help=f"put the table into {DOCUMENT.relative_to(ROOT)}")
    return parser


def measure(bench: Bench, cases: Sequence[Case], rounds: int) -> tuple[Samples, list[str]]:
    """The samples of each case and subject, taken in turns, with a line for each that could not be taken."""
    samples: Samples = defaultdict(lambda: defaultdict(list))
    failures: list[str] = []
    turns = [(turn, case, subject) for turn in range(rounds) for case in cases for subject in case.subjects]
    for turn, case, subject in turns:
        try:
            sample = case.measure(bench, subject)
        except Failed as failure:
            _tell(f"FAILED: {case.name}, {subject}: {failure}")
            failures.append(f"FAILED: {case.name}, {subject}: {str(failure).splitlines()[0]}")
        else:
            samples[case.name][subject].append(sample)
            _tell(f"{turn + 1}/{rounds}  {case.name:14} {subject:12} {_shown(sample)}")
    return samples, failures


def _shown(sample: Sample) -> str:
    cpu = f"  {number(sample.cpu)} µs of CPU each" if sample.cpu is not None else ""
    return f"{number(sample.value):>10}{cpu}" + (f"  {sample.errors} ERRORS" if sample.errors else "")


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def figures_of(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> dict[str, dict[str, Sample]]:
    """The medians."""
    return {case: {subject: median(taken) for subject, taken in found.items()} for case, found in samples.items()}


def turns_of(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> list[Figures]:
    """The samples of each turn; one in which something failed may have fewer."""
    count = max((len(taken) for found in samples.values() for taken in found.values()), default=0)
    return [
        {case: {subject: taken[turn] for subject, taken in found.items() if turn < len(taken)} for case, found in samples.items()}
        for turn in range(count)
    ]


@dataclass(frozen=True)
class Measured:
    """A run: its samples, its rows, what else is to be said."""

    samples: Samples
    rows: Sequence[Row]
    said: Sequence[str]


def run(asked: argparse.Namespace, stack: ExitStack) -> Measured:
    """Build the scene and measure."""
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy-bench")))
    found, said = peers.available() if asked.with_peers else ({}, [])
    bench = Bench(Scene(stack, folder), stack, asked.seconds, found)
    cases = [case for case in all_cases(tuple(found)) if not asked.only or case.name in asked.only]
    samples, failures = measure(bench, cases, asked.rounds)
    figures = figures_of(samples)
    if minutes := asked.soak or (soak.MINUTES if "soak" in (asked.only or ()) else 0):
        course = soak.run(bench, minutes, _tell)
        figures["soak"] = {PROXY: course.sample()}
        said.append(course.note())
    said = [*rows.notes(figures), *said, *dict.fromkeys(failures)]
    return Measured(samples, rows.rows(figures, turns_of(samples)), said)


def keep(path: pathlib.Path, about: Mapping[str, str], measured: Measured) -> None:
    """Keep the run as JSON."""
    samples = {
        case: {subject: [asdict(sample) for sample in taken] for subject, taken in found.items()}
        for case, found in measured.samples.items()
    }
    shown = [row.as_json() for row in measured.rows]
    kept = {"machine": about, "rows": shown, "notes": list(measured.said), "samples": samples}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    """Measure as the command line says."""
    asked = arguments([case.name for case in all_cases()]).parse_args()
    for name in ("nginx", "wrk", "taskset"):
        program(name)
    # What this process starts inherits its core; what is measured gets the other one.
    os.sched_setaffinity(0, {cores()[1]})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    about, began = facts(), time.monotonic()
    try:
        with ExitStack() as stack:
            measured = run(asked, stack)
    except Failed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing is left running.")
    about["took"] = f"{(time.monotonic() - began) / 60:.0f} minutes, {asked.rounds} × {asked.seconds:g} s a case"
    text = table.report(about, measured.rows, measured.said)
    print(text)
    if asked.json:
        keep(asked.json, about, measured)
    if asked.write:
        table.write(DOCUMENT, text)


if __name__ == "__main__":
    main()
