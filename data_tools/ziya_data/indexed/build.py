"""Text files -> tokens -> an indexed dataset.

1. this process reads and decompresses the inputs in batches of about a megabyte;
2. worker processes parse and tokenize them, several batches each in flight, never more;
3. this process takes the results in the order of the input and writes them.

So the dataset is the same whatever the number of workers, and memory does not grow with the input.
"""

import json
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ziya_data.tokenizer import Tokenizer

from . import format
from .inputs import Batch, batches, expand
from .progress import Progress
from .writer import IndexedDatasetWriter

IN_FLIGHT = 3  # batches a worker: one at work, one waiting, one being written
SHOWN = 10  # bad records told one by one


@dataclass
class BuildReport:
    """What a build did."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    empty: int = 0
    """Records with an empty text, left out."""
    bad: int = 0
    """Records that are no JSON object with a text, left out."""
    first_bad: list[str] = field(default_factory=list)
    """`file:record: why` of the first ten."""
    seconds: float = 0.0

    def __str__(self) -> str:
        rate = self.tokens / max(self.seconds, 1e-9)
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens from {self.files} files in {self.seconds:.1f} s "
            f"({rate:,.0f} tokens/s); {self.empty} empty and {self.bad} bad records left out"
        )


@dataclass(slots=True)
class Encoded:
    """A batch as tokens."""

    tokens: NDArray[np.integer]
    """[sum of lengths]"""
    lengths: NDArray[np.int32]
    """[documents]"""
    empty: int
    bad: list[str]
    """`file:record: why` of each."""


def build(
    inputs: Sequence[str | Path], prefix: str, tokenizer_path: Path, workers: int = 1, bad_limit: int = 100
) -> BuildReport:
    """Builds the dataset `prefix` from files and folders; each document is the tokens of its text + eos.

    workers: processes that tokenize (1: this one). bad_limit: more bad records than this stop the build.
    Raises ValueError or OSError, leaving no new file under the prefix.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be 1 or more")
    files = expand(inputs)
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.eos_id < 0:
        raise ValueError(f"tokenizer {tokenizer_path} has no eos piece; documents cannot be told apart without one")
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    report = BuildReport(files=len(files))
    progress = Progress(f"index build {Path(prefix).name}")
    source = (batch for path in files for batch in batches(path))
    with IndexedDatasetWriter(prefix, tokenizer.vocab_size, tokenizer.fingerprint()) as writer:
        for encoded in _encode_in_order(source, tokenizer_path, workers):
            writer.add(encoded.tokens, encoded.lengths)
            _count(report, encoded, bad_limit, progress)
            report.documents, report.tokens, report.seconds = writer.documents, writer.tokens, progress.seconds
            progress.update(str(report))
        if report.documents == 0:
            raise ValueError(f"no document in {len(files)} files ({report.empty} empty, {report.bad} bad records)")
    report.seconds = progress.seconds
    progress.finish(str(report))
    return report


def _count(report: BuildReport, encoded: Encoded, bad_limit: int, progress: Progress) -> None:
    report.empty += encoded.empty
    report.bad += len(encoded.bad)
    for line in encoded.bad[: SHOWN - len(report.first_bad)]:
        report.first_bad.append(line)
        progress.say(f"bad record left out: {line}")
    if report.bad > bad_limit:
        raise ValueError(
            f"{report.bad} bad records, more than bad_limit={bad_limit}; mend the input or raise the limit "
            f"(first: {report.first_bad[0]})"
        )


def _encode_in_order(source: Iterator[Batch], tokenizer_path: Path, workers: int) -> Iterator[Encoded]:
    if workers == 1:
        for batch in source:
            yield encode(batch, tokenizer_path)
        return
    # spawn: a forked child of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[Future[Encoded]] = deque()
        try:
            for batch in source:
                waiting.append(pool.submit(encode, batch, tokenizer_path))
                if len(waiting) >= workers * IN_FLIGHT:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@lru_cache(maxsize=1)
def load_tokenizer(path: Path) -> Tokenizer:
    """Once a process."""
    return Tokenizer.load(path)


def encode(batch: Batch, tokenizer_path: Path) -> Encoded:
    """Tokens of a batch's texts, eos after each; what cannot be read is counted, not raised."""
    tokenizer = load_tokenizer(tokenizer_path)
    flat: list[int] = []
    lengths: list[int] = []
    bad: list[str] = []
    empty = 0
    for number, record in enumerate(batch.records, start=batch.first):
        try:
            text = _text_of(record)
            ids = tokenizer.encode(text) if text else []
        except UnicodeEncodeError:
            bad.append(f"{batch.path}:{number}: half a surrogate pair in the text")
            continue
        except ValueError as error:
            bad.append(f"{batch.path}:{number}: {error}")
            continue
        if not text:
            empty += text is not None
            continue
        flat += ids
        flat.append(tokenizer.eos_id)
        lengths.append(len(ids) + 1)
    dtype = format.dtype_for(tokenizer.vocab_size)
    # Through int64, so that an id too large for the dtype reaches the writer's check as it is.
    tokens = np.array(flat, np.int64)
    if tokens.size and int(tokens.max()) < tokenizer.vocab_size:
        tokens = tokens.astype(dtype)
    return Encoded(tokens, np.array(lengths, np.int32), empty, bad)


def _text_of(record: bytes | str | None) -> str | None:
    """The text of a record; None for a blank line. Raises ValueError with the reason for a bad one."""
    if record is None:
        raise ValueError("no text")
    if isinstance(record, str):
        return record
    if not record.strip():
        return None
    try:
        given = json.loads(record)
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(given, dict):
        raise ValueError("not a JSON object")
    if "text" not in given:
        raise ValueError('no key "text"')
    if not isinstance(given["text"], str):
        raise ValueError(f'"text" is a {type(given["text"]).__name__}, not a string')
    return given["text"]
