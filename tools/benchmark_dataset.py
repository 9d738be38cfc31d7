"""Speed of the indexed dataset, beside megatron-core's where it can be had, in one run.

    python tools/benchmark_dataset.py                       # ours alone
    python tools/benchmark_dataset.py --install-megatron    # megatron-core into a temporary folder
    python tools/benchmark_dataset.py --growth              # how ours grows with the number of documents
    python tools/benchmark_dataset.py --memory --text a.jsonl.zst --tokenizer DIR    # peak memory of builds

The two sides take turns, each in a process of its own, on the same data in --folder; of each job the best of all rounds
counts, in CPU seconds of one thread (finalize, which waits for the disk: seconds). The jobs are in dataset_sides.py.
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dataset_sides import lengths_of, ours, theirs
from machine import here

TARGETS = {
    "write, Mtokens/s": "20x",
    "finalize, s": "< 0.2",
    "the kernel's write alone, Mtokens/s": "",
    "samples of S, /s": "20x",
    "index of 4 epochs, Megatron's order, s": "3x",
    "index of 4 epochs, own order, s": "10x",
    "blend of 8, 10 M samples, s": "3x",
    "jsonl.zst to dataset, Mtokens/s": "3x",
}
# megatron-core 0.19.2 where the bounds were set: two cores, wall clock.
THEN = {
    "write, Mtokens/s": 14.2,
    "finalize, s": 4.6,
    "samples of S, /s": 1009.0,
    "index of 4 epochs, Megatron's order, s": 2.25,
    "index of 4 epochs, own order, s": 2.25,
    "blend of 8, 10 M samples, s": 0.91,
}
RATES = "/s"  # in the name of a job: more is better


def growth(given: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """What 10^6, 10^7, 10^8 documents cost us: lengths only, over a sparse .bin; CPU seconds and growth of the peak.

    What is mapped counts as memory as far as it has been read: 20 bytes a document once it has been checked.
    """
    from ziya_data.indexed import format
    from ziya_data.indexed.megatron import MegatronSamples
    from ziya_data.indexed.reader import IndexedDataset
    from ziya_data.indexed.samples import StreamSamples, corpus_of, source_key

    rows = []
    for documents in (10**n for n in range(6, given.largest + 1)):
        lengths = lengths_of(documents, 300 * documents)
        ends = np.cumsum(lengths, dtype="<i8")
        with (folder / "sparse.bin").open("wb") as file:
            file.truncate(int(ends[-1]) * 2)
        with (folder / "sparse.idx").open("wb") as file:
            file.write(format.HEADER.pack(format.MAGIC, 1, 8, documents, documents + 1))
            lengths.tofile(file)
            ((ends - lengths) * 2).tofile(file)
            np.arange(documents + 1, dtype="<i8").tofile(file)
        del ends, lengths
        row: dict[str, float] = {"documents": documents}

        def measured(job: str, work: Callable[[], object], row: dict[str, float] = row) -> object:
            before = peak_mib(reset=True)
            begin = time.process_time()
            made = work()
            row[f"{job}, s"], row[f"{job}, MiB"] = time.process_time() - begin, peak_mib() - before
            return made

        dataset = measured("open and check", lambda: IndexedDataset(folder / "sparse"))
        assert isinstance(dataset, IndexedDataset)
        corpus = corpus_of([dataset])
        stream = StreamSamples(corpus, given.sequence, source_key(1234, "a"))
        measured("own index", lambda stream=stream: stream.build_index(0))
        samples = corpus.tokens // given.sequence - 1
        measured("Megatron's", lambda c=corpus, n=samples: MegatronSamples(c, given.sequence, 1234, n))
        measured("packing", lambda c=corpus: c.pack(1, 0, given.sequence))
        rows.append(row)
    return rows


def peak_mib(reset: bool = False) -> float:
    """The most memory that this process has held, or holds now after a `reset`."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def memory(given: argparse.Namespace, folder: Path) -> list[dict[str, float]]:
    """Peak memory of `ziya index build` over inputs of growing size, made by repeating --text."""
    import zstandard

    with given.text.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        text = io.BufferedReader(stream).read()  # type: ignore[arg-type]
    rows = []
    for megabytes in (given.megabytes // 16, given.megabytes // 4, given.megabytes):
        path = folder / "repeated.jsonl"
        with path.open("wb") as out:
            while out.tell() < megabytes * 10**6:
                out.write(text)
        for workers in (1, 2):
            given_words = ["--tokenizer", given.tokenizer, "--input", path, "--output", folder / "memory"]
            words = [*map(str, given_words), "--workers", str(workers)]
            program = f"from ziya_data.indexed.commands import build; build({words})"
            command = [sys.executable, "-c", program]
            begin = time.perf_counter()
            process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise ValueError(f"the build failed with status {status}; see above")
            row = {"input, MB": path.stat().st_size / 1e6, "workers": workers}
            row["peak of the largest process, MiB"] = usage.ru_maxrss / 1024
            rows.append(row | {"s": time.perf_counter() - begin})
    return rows


def environment(extra: str = "") -> dict[str, str]:
    """Of a child that imports what this process can, and `extra`."""
    path = ":".join([extra, *sys.path]) if extra else ":".join(sys.path)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def child(given: argparse.Namespace, side: str, folder: Path, extra: str = "") -> object:
    """One side in a process of its own. Raises ValueError if it failed."""
    arguments = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", str(folder)]
    done = subprocess.run(arguments, env=environment(extra), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"the {side} side of the benchmark failed with exit code {done.returncode}; see above")
    return json.loads(done.stdout.splitlines()[-1])


def install(folder: Path) -> str:
    """megatron-core in a folder of its own, without what it depends on: its dataset layer needs torch and NumPy."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-requires-python"]
    subprocess.run([*command, "--target", str(folder), "megatron-core"], check=True, stdout=sys.stderr)
    return str(folder)


def better(job: str, one: float, other: float) -> float:
    """The better of two results of a job."""
    return max(one, other) if RATES in job else min(one, other)


def rounds(given: argparse.Namespace, folder: Path, extra: str, there: bool) -> tuple[dict[str, float], ...]:
    """(ours, theirs): of each job the best of all rounds; theirs {} where there is no megatron-core."""
    found: tuple[dict[str, float], ...] = ({}, {})
    for _ in range(given.rounds):
        for side, so_far in zip(("ours", "theirs") if there else ("ours",), found, strict=False):
            results = child(given, side, folder, extra)
            assert isinstance(results, dict)
            for job, value in results.items():
                so_far[job] = better(job, value, so_far.get(job, value))
    return found


def table(mine: dict[str, float], other: dict[str, float]) -> str:
    """Markdown: job, theirs, ours, how many times as fast, wanted; and the same beside their figures of then."""
    lines = [
        "| job | megatron-core | ours | times | wanted | megatron-core when the bounds were set | times |",
        "|---|---|---|---|---|---|---|",
    ]

    def compared(job: str, value: float, against: float | None) -> tuple[str, str]:
        if against is None:
            return "-", ""
        return f"{against:.4g}", f"{(value / against if RATES in job else against / value):.1f}x"

    for job, value in mine.items():
        # Their own order is what ours stands instead of.
        now, times = compared(job, value, other.get(job.replace("own order", "Megatron's order")))
        then, times_then = compared(job, value, THEN.get(job))
        lines.append(f"| {job} | {now} | {value:.4g} | {times} | {TARGETS[job]} | {then} | {times_then} |")
    return "\n".join(lines)


def rows_table(rows: list[dict[str, float]]) -> str:
    """Markdown of rows with the same keys."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    for row in rows:
        told = [f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}" for value in row.values()]
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines)


def parsed(argv: list[str] | None) -> argparse.Namespace:
    """The arguments. Raises SystemExit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--tokens", type=int, default=300_000_000)
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each job in a turn (default 3)")
    parser.add_argument("--text", type=Path, help="a .jsonl.zst for the build from text, with --tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.model")
    parser.add_argument("--install-megatron", action="store_true", help="install megatron-core into a temporary folder")
    parser.add_argument("--growth", action="store_true", help="10^6 documents and more, lengths only, ours alone")
    parser.add_argument("--memory", action="store_true", help="peak memory of builds from --text, repeated")
    parser.add_argument("--megabytes", type=int, default=256, help="the largest input of --memory (default 256)")
    parser.add_argument("--largest", type=int, default=8, help="exponent of ten of --growth (default 8)")
    parser.add_argument("--folder", type=Path, help="where the data lies (default: a temporary folder)")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    parser.add_argument("--side", choices=["ours", "theirs", "growth"], help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if (given.text is None) != (given.tokenizer is None):
        parser.error("--text and --tokenizer go together")
    if given.memory and given.text is None:
        parser.error("--memory needs --text and --tokenizer")
    return given


def main(argv: list[str] | None = None) -> int:
    """Runs the sides in turn and prints the table."""
    given = parsed(argv)
    if given.side:
        print(json.dumps({"ours": ours, "theirs": theirs, "growth": growth}[given.side](given, given.folder)))
        return 0
    before = f"{here()}, load average {os.getloadavg()[0]:.1f}"
    found: dict[str, object]
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        if given.growth or given.memory:
            rows = child(given, "growth", folder) if given.growth else memory(given, folder)
            assert isinstance(rows, list)
            shown, found = rows_table(rows), {"rows": rows}
        else:
            extra = install(folder / "megatron") if given.install_megatron else ""
            there = bool(extra) or importlib.util.find_spec("megatron") is not None
            if not there:
                print("megatron-core is not installed: ours alone (--install-megatron gets it)\n")
            mine, other = rounds(given, folder, extra, there)
            size = f"{given.documents:,} documents, {given.tokens:,} tokens, S = {given.sequence}"
            shown = f"{size}\n\n{table(mine, other)}"
            found = {"ours": mine, "theirs": other if there else None}
    print(f"{before} before, {os.getloadavg()[0]:.1f} after\n\n{shown}")
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
