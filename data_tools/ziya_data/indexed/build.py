"""Text files -> tokens -> an indexed dataset.

1. this process reads and decompresses the inputs in batches of about a megabyte;
2. worker processes parse and tokenize them, several batches each in flight, never more;
3. this process takes the results in the order of the input and writes them.

So the dataset is the same whatever the number of workers, and memory does not grow with the input.

Every half minute what is written is made durable and noted in `P.build.json`. A build that was killed, or met a full
disk, goes on from there when it is started again with the same inputs and options, and ends with the same bytes.
"""

import dataclasses
import json
import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ziya_data.tokenizer import Tokenizer
from ziya_data.tokenizer.tokenizer import rows, utf8

from . import format
from . import inputs as inputs_module
from .inputs import Batch, batches, expand
from .note import Note, identity
from .progress import Progress
from .split import VALIDATION, in_validation, split_off
from .writer import IndexedDatasetWriter

IN_FLIGHT = 3  # batches a worker: one at work, one waiting, one being written
SHOWN = 10  # bad records told one by one
DECODER = json.JSONDecoder()


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


@dataclass(frozen=True)
class Options:
    """What decides the bytes of a build, besides its inputs."""

    tokenizer: Path
    prompt_until: tuple[str, ...] = ()
    """A document's prompt is what stands before, and the last of, any of these (`回答:`, `Answer:`)."""
    validation: float = 0.0
    """Share of the documents, chosen by a hash of their ids, that goes to `P.validation` instead."""


@dataclass(slots=True)
class Encoded:
    """A batch as tokens."""

    tokens: NDArray[np.integer]
    """[sum of lengths]"""
    lengths: NDArray[np.int32]
    """[documents]"""
    prompts: NDArray[np.int32] | None
    """[documents] tokens of each one's prompt."""
    validation: NDArray[np.bool_] | None
    """[documents]"""
    empty: int
    bad: list[str]
    """`file:record: why` of each."""


def build(
    inputs: Sequence[str | Path],
    prefix: str,
    tokenizer_path: Path,
    workers: int = 1,
    bad_limit: int = 100,
    prompt_until: Sequence[str] = (),
    validation: float = 0.0,
) -> BuildReport:
    """Builds the dataset `prefix` from files and folders; each document is the tokens of its text + eos.

    workers: processes that tokenize (1: this one). bad_limit: more bad records than this stop the build.
    prompt_until, validation: see Options. Raises ValueError or OSError, leaving no new file under the prefix but, after
    an OSError, what a second start goes on from.
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be 1 or more")
    if bad_limit < 0:
        raise ValueError(f"bad_limit={bad_limit} must be 0 or more; 0 stops at the first bad record")
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation} must be a share of the documents, 0 to below 1")
    if "" in prompt_until:
        raise ValueError("prompt_until is empty; give the words that end a prompt")
    prefix = format.prefix_of(prefix)
    files = expand(inputs)
    tokenizer = load_tokenizer(tokenizer_path)
    if tokenizer.eos_id < 0:
        raise ValueError(f"tokenizer {tokenizer_path} has no eos piece; documents cannot be told apart without one")
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    options = Options(tokenizer_path, tuple(prompt_until), validation)
    told = [tokenizer.fingerprint(), options.prompt_until, options.validation, inputs_module.BATCH_BYTES]
    note = Note(Path(f"{prefix}.build.json"), identity(files, told))
    report, progress = BuildReport(files=len(files)), Progress(f"index build {Path(prefix).name}")
    if tokenizer.slow_because:
        progress.say(f"{tokenizer_path}: encoded without gigatoken, slowly: {tokenizer.slow_because}")
    if not note.found:
        note.path.unlink(missing_ok=True)  # of another build: its files are about to be overwritten
    else:
        report = BuildReport(**note.found["report"])
        progress.say(f"{note.path} found: going on after {report.documents:,} documents")
    prefixes = [prefix, prefix + VALIDATION] if validation else [prefix]
    with ExitStack() as stack:
        states = note.found["writers"] if note.found else [None] * len(prefixes)
        writers = [
            stack.enter_context(IndexedDatasetWriter(p, tokenizer.vocab_size, tokenizer.fingerprint(), resume=state))
            for p, state in zip(prefixes, states, strict=True)
        ]
        _run(files, options, writers, workers, bad_limit, report, note, progress)
    note.path.unlink(missing_ok=True)
    report.seconds = progress.seconds
    progress.clear()
    return report


def _run(
    files: Sequence[Path],
    options: Options,
    writers: Sequence[IndexedDatasetWriter],
    workers: int,
    bad_limit: int,
    report: BuildReport,
    note: Note,
    progress: Progress,
) -> None:
    done = int(note.found["batches"]) if note.found else 0
    source = islice((batch for path in files for batch in batches(path)), done, None)
    try:
        for encoded in _encode_in_order(source, options, workers):
            for writer, part in zip(writers, split_off(encoded.validation, encoded), strict=True):
                writer.add(part.tokens, part.lengths, part.prompts)
            _count(report, encoded, bad_limit, progress)
            report.documents = sum(writer.documents for writer in writers)
            report.tokens = sum(writer.tokens for writer in writers)
            report.seconds = progress.seconds
            done += 1
            note.write_if_due(done, writers, dataclasses.asdict(report))
            progress.update(str(report))
    except (OSError, KeyboardInterrupt):
        if note.exists():
            progress.say(f"stopped; start the same build again to go on, or delete {note.path} to begin anew")
            for writer in writers:
                writer.keep()
        raise
    except BaseException:
        note.path.unlink(missing_ok=True)
        raise
    if report.documents == 0:
        note.path.unlink(missing_ok=True)
        raise ValueError(f"no document in {len(files)} files ({report.empty} empty, {report.bad} bad records)")


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


def _encode_in_order(source: Iterator[Batch], options: Options, workers: int) -> Iterator[Encoded]:
    if workers == 1:
        for batch in source:
            yield encode(batch, options)
        return
    # spawn: a forked child of a process that has threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting: deque[Future[Encoded]] = deque()
        try:
            for batch in source:
                waiting.append(pool.submit(encode, batch, options))
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


def encode(batch: Batch, options: Options) -> Encoded:
    """Tokens of a batch's texts, eos after each; what cannot be read is counted, not raised."""
    tokenizer = load_tokenizer(options.tokenizer)
    texts: list[str] = []
    raw: list[bytes] = []
    bad: list[str] = []
    empty = 0
    for number, record in enumerate(batch.records, start=batch.first):
        try:
            text = _text_of(record)
            form = utf8(text) if text else b""
        except ValueError as error:
            bad.append(f"{batch.path}:{number}: {error}")
            continue
        if not text:
            empty += text is not None
            continue
        texts.append(text)
        raw.append(form)
    tokens: NDArray[np.integer]
    tokens, sizes = tokenizer.encode_arrays(raw, end=tokenizer.eos_id)
    hidden = None
    if options.prompt_until:
        of_each = zip(texts, rows(tokens, sizes), strict=True)
        prompts = [prompt_tokens(text, ids[:-1], options.prompt_until, tokenizer) for text, ids in of_each]
        hidden = np.array(prompts, np.int32)
    # An id too large for the dtype reaches the writer's check as it is.
    if tokens.size and int(tokens.max()) < tokenizer.vocab_size:
        tokens = tokens.astype(format.dtype_for(tokenizer.vocab_size))
    chosen = in_validation(tokens, sizes, options.validation) if options.validation else None
    return Encoded(tokens, sizes, hidden, chosen, empty, bad)


def prompt_tokens(text: str, ids: Sequence[int], ends: Sequence[str], tokenizer: Tokenizer) -> int:
    """How many of a text's first ids lie whole in its prompt; 0 if none of `ends` is in it."""
    end = max((text.rfind(words) + len(words) if words in text else 0) for words in ends)
    if not end:
        return 0
    prompt = tokenizer.encode(text[:end])
    same = 0
    while same < min(len(prompt), len(ids)) and prompt[same] == ids[same]:
        same += 1
    return same  # an id that reaches over the end is another one without its rest


def _text_of(record: bytes | str | None) -> str | None:
    """The text of a record; None for a blank line. Raises ValueError with the reason for a bad one."""
    if record is None:
        raise ValueError("no text")
    if isinstance(record, str):
        return record
    record = record.strip()
    if not record:
        return None
    try:
        given = _parsed(record.decode("utf-8", "surrogatepass"))
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


def _parsed(text: str) -> object:
    """`json.loads`, which first asks what it was given and then looks for white space: for what begins at once, and
    ends with its object, at half the time. Raises ValueError."""
    if text.startswith("{"):
        given, end = DECODER.raw_decode(text)
        if end == len(text):
            return given
    return json.loads(text.removeprefix("\ufeff"))
