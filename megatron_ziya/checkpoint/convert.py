"""Whole models, from Hugging Face to a checkpoint and back: streamed, proven, and put in place only when whole.

A conversion writes `OUT.tmp`; what passes the proof is renamed to OUT, what does not to `OUT.failed`.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from megatron_ziya.checkpoint import distributed
from megatron_ziya.checkpoint.card import model_card
from megatron_ziya.checkpoint.distributed import fresh_folder, refuse_replacing, write_weights
from megatron_ziya.checkpoint.format import MANIFEST, Origin, Segment, close_file, new_file, write_manifest
from megatron_ziya.checkpoint.huggingface import (
    CARRIED,
    TOKENIZER_FILES,
    HuggingFaceFolder,
    config_of,
    copy_files,
    dtype_name,
    fingerprint,
    names,
    read_json,
)
from megatron_ziya.checkpoint.load import stored_dtype
from megatron_ziya.checkpoint.megatron import MegatronFolder
from megatron_ziya.checkpoint.meta import MetaFolder
from megatron_ziya.checkpoint.proof import Proof, prove
from megatron_ziya.checkpoint.reader import Reader, check_tokenizer, resolve
from megatron_ziya.checkpoint.streaming import SHARD_BYTES, Digests, Form, digest, require_space, write_model

RECORD = "conversion.json"
"""In a Hugging Face folder that we wrote: where it comes from, and its proof."""
PROGRESS_SECONDS = 10.0


def from_hf(source: Path, out: Path, verify: bool = True) -> Proof | None:
    """Write the model folder `source` as a checkpoint, bit for bit; its other files travel in `huggingface/`.

    Returns the proof, None without one. Raises ValueError or FileNotFoundError for a folder that is not a whole LLaMA.
    """
    return _from_folder(HuggingFaceFolder(source), out, verify)


def from_meta(source: Path, out: Path, verify: bool = True, max_positions: int = 0) -> Proof | None:
    """`from_hf` for a folder of Meta's own release (meta.py). transformers does not read it: no logits are compared.

    Raises ValueError or FileNotFoundError for a folder that is not a whole LLaMA.
    """
    return _from_folder(MetaFolder(source, max_positions), out, verify)


def from_megatron(source: Path, out: Path, verify: bool = True, vocabulary_size: int = 0) -> Proof | None:
    """`from_hf` for a legacy Megatron-LM checkpoint (megatron.py). Raises ValueError or FileNotFoundError."""
    return _from_folder(MegatronFolder(source, vocabulary_size), out, verify)


def _from_folder(folder: HuggingFaceFolder | MetaFolder | MegatronFolder, out: Path, verify: bool) -> Proof | None:
    source = folder.path
    check_target(out, source)
    out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, sum(file.stat().st_size for file in folder.files))
    say_tokenizer(source, folder.architecture.vocabulary_size)
    digests = Digests()

    def weights() -> Iterator[tuple[str, Tensor]]:
        for name in progress(folder.shapes):
            tensor = folder.read(name)
            if verify:
                digests.note(name, tensor)
            yield name, tensor

    temporary = out.with_name(out.name + ".tmp")
    with TemporaryDirectory() as private:
        carried = Path(private) / "huggingface"  # the temporary folder itself is closed to others, and so a copy of it
        copy_files(source, carried)
        write_weights(temporary, folder.architecture, weights(), carried, {"converted_from": str(source)})
    expected = digests.all()
    judge = source if isinstance(folder, HuggingFaceFolder) else None
    proof = prove(expected, folder.architecture, Reader(temporary), judge) if verify else None
    settle(temporary, out, MANIFEST, proof)
    return proof


def to_hf(
    source: Path,
    out: Path,
    dtype: torch.dtype | None = None,
    tokenizer: Path | None = None,
    verify: bool = True,
    shard_bytes: int = SHARD_BYTES,
    evaluations: Sequence[Path] = (),
) -> Proof | None:
    """Write a checkpoint, or the newest one of a run directory, as a Hugging Face folder.

    The weights keep their type unless `dtype` says otherwise; a wider one takes the FP32 masters where there are any.
    `tokenizer` is a folder that replaces the tokenizer files the checkpoint carries; its tokenizer.model must be the
    checkpoint's own where that is known. A model card is written too, with the scores in `evaluations` (card.py).
    Returns the proof, None without. Raises ValueError or FileNotFoundError.
    """
    reader = Reader(resolve(source))
    check_target(out, reader.path)
    a, stored = reader.architecture, stored_dtype(reader, "embedding.weight")
    wider = dtype is not None and dtype.itemsize > stored.itemsize
    kind = "master" if wider and "master" in reader.kinds() else "weight"
    theirs = names(a)
    logical = {name: ours for ours, name in theirs.items()}
    forms = {name: Form(reader.shapes[n], dtype or stored_dtype(reader, n, kind)) for n, name in theirs.items()}
    carried = reader.path / "huggingface"
    say_tokenizer(tokenizer or carried, a.vocabulary_size)
    if tokenizer is not None:
        check_tokenizer(reader, fingerprint(tokenizer), f"the folder {tokenizer}")
    elif not any((carried / name).is_file() for name in TOKENIZER_FILES):
        print("no tokenizer is written: the checkpoint carries none; give --tokenizer FOLDER to add one")
    token_ids = token_ids_of(tokenizer) if tokenizer else {}
    readme = model_card(reader, out.name, evaluations)
    temporary = fresh_folder(out)
    written = write_model(temporary, forms, lambda name: reader.read(logical[name], kind), shard_bytes, verify)
    write_small_files(temporary, carried, tokenizer, token_ids)
    (temporary / "README.md").write_text(readme, encoding="utf-8")
    old = read_json(carried / "config.json") if (carried / "config.json").is_file() else None
    write_json(temporary / "config.json", config_of(a, dtype or stored, old, token_ids))
    record = {
        "converted_from": str(reader.path),
        "step": reader.step,
        "kind": kind,
        "dtype": dtype_name(dtype or stored),
    }
    write_json(temporary / RECORD, record)
    expected = {ours: written.digests.get(name, "") for ours, name in theirs.items()}
    proof = prove(expected, a, HuggingFaceFolder(temporary), temporary) if verify else None
    settle(temporary, out, RECORD, proof)
    return proof


def reshard(source: Path, out: Path, files: int = 1, weights_only: bool = False, verify: bool = True) -> Proof | None:
    """Write a checkpoint again in `files` files of about one size, every logical tensor whole; no value changes.

    Any layout reads any checkpoint, so this is for the disk: fewer files than there were ranks, or a share for each
    reader; with `weights_only` no masters and moments. Returns the proof, None without. Raises ValueError or
    FileNotFoundError.
    """
    reader = Reader(resolve(source))
    check_target(out, reader.path)
    kinds = ["weight"] if weights_only else sorted(reader.kinds(), reverse=True)
    if not 1 <= files <= len(kinds) * len(reader.shapes):
        raise ValueError(f"--files {files} must be from 1 to {len(kinds) * len(reader.shapes)}, the tensors there are")
    whole = {(kind, name): Segment.whole(kind, name, shape) for kind in kinds for name, shape in reader.shapes.items()}
    sizes = {
        place: segment.last * stored_dtype(reader, place[1], place[0]).itemsize for place, segment in whole.items()
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    require_space(out.parent, sum(sizes.values()))
    path, origin = out.with_name(out.name + ".tmp"), Origin(reader.run, reader.step)
    temporary = fresh_folder(path)
    headers: dict[str, str] = {}
    digests = Digests()
    places = iter(sorted(sizes, key=lambda place: -stored_dtype(reader, place[1], place[0]).itemsize))  # all aligned
    done, total = 0, sum(sizes.values())
    for number in range(files):
        file = temporary / f"rank_{number:05d}.safetensors"
        written = new_file(file, (segment.key() for segment in whole.values()), origin)
        while done * files < total * (number + 1):
            kind, name = place = next(places)
            tensor = reader.read(name, kind)
            written.add(whole[place].key(), tensor.reshape(-1))
            if verify:
                digests.note(f"{kind} {name}", tensor)
            done += sizes[place]
        headers[file.name] = close_file(file, written)
    made = ("format", "run", "step", "architecture", "files", "others", "checksum")
    extra = {key: value for key, value in reader.manifest.items() if key not in made}
    if (reader.path / "recipe.toml").is_file():
        shutil.copyfile(reader.path / "recipe.toml", temporary / "recipe.toml")
    extra["resharded_from"] = str(reader.path)
    distributed.finish(path, temporary, reader.architecture, origin, headers, extra, reader.path / "huggingface")
    proof = None
    if verify:
        again = Reader(path)
        again.check()
        expected = digests.all()
        different = tuple(
            f"{kind} {name}" for kind, name in whole if digest(again.read(name, kind)) != expected[f"{kind} {name}"]
        )
        proof = Proof(len(expected), different, note="no value was changed")
    settle(path, out, MANIFEST, proof)
    return proof


def write_small_files(folder: Path, carried: Path, tokenizer: Path | None, token_ids: dict[str, int]) -> None:
    """Tokenizer, generation config and licences: what `carried` has, the tokenizer's part from `tokenizer` if given."""
    copy_files(carried, folder, tuple(p for p in CARRIED if tokenizer is None or p not in TOKENIZER_FILES))
    if tokenizer is not None:
        copy_files(tokenizer, folder, TOKENIZER_FILES)
    generation = folder / "generation_config.json"
    if token_ids:
        write_json(generation, (read_json(generation) if generation.is_file() else {}) | token_ids)


def token_ids_of(tokenizer: Path) -> dict[str, int]:
    """bos, eos and pad as config.json names them."""
    from ziya_data.tokenizer import Tokenizer

    found = Tokenizer.load(tokenizer)
    return {"bos_token_id": found.bos_id, "eos_token_id": found.eos_id, "pad_token_id": found.pad_id}


def say_tokenizer(folder: Path, rows: int) -> None:
    """Print how the tokenizer of `folder` fits an embedding of `rows`. Raises ValueError when it has more pieces."""
    needed = ["sentencepiece"] if (folder / "tokenizer.model").is_file() else ["sentencepiece", "tokenizers"]
    if not fingerprint(folder) or not all(map(find_spec, needed)):
        return
    from ziya_data.tokenizer import Tokenizer

    pieces = Tokenizer.load(folder).vocab_size
    check_vocabulary(folder, pieces, rows)
    if pieces < rows:
        print(f"the tokenizer has {pieces:,} pieces, the embedding {rows:,} rows: {rows - pieces:,} rows are padding")


def check_vocabulary(tokenizer: Path, pieces: int, rows: int) -> None:
    """Raises ValueError when the tokenizer has more pieces than the embedding has rows."""
    if pieces > rows:
        raise ValueError(
            f"the tokenizer {tokenizer} has {pieces:,} pieces, the model's embedding {rows:,} rows; give the tokenizer "
            "that belongs to the model, or widen the model with `ziya convert grow-vocabulary`"
        )


def check_target(out: Path, source: Path) -> None:
    """Says it when an earlier conversion's `out` will be replaced.

    Raises ValueError when `out` is the source, holds a run's work, or what no conversion of ours wrote.
    """
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the source itself; give another folder")
    ours = (out / "manifest.json").is_file() or (out / RECORD).is_file()
    if out.exists() and not ours and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and was not written by a conversion; give another folder or remove it")
    refuse_replacing(out)
    if ours:
        print(f"{out} holds what an earlier conversion wrote; it is replaced once this one is whole")


def settle(temporary: Path, out: Path, record: str, proof: Proof | None) -> None:
    """Write the proof into the record and rename: to `out` if it passed or was skipped, else to `out.failed`."""
    content = read_json(temporary / record) | {"proof": proof.to_json() if proof else "skipped"}
    if record == MANIFEST:
        write_manifest(temporary, content)
    else:
        write_json(temporary / record, content)
    target = out if proof is None or proof.passed else out.with_name(out.name + ".failed")
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes `file` whole or not at all."""
    unfinished = file.with_name(file.name + ".tmp")
    unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(file)


def progress(items: Iterable[str]) -> Iterator[str]:
    """The same items; a line every ten seconds tells how far it is."""
    listed = list(items)
    last = time.monotonic()
    for number, item in enumerate(listed, 1):
        yield item
        if time.monotonic() - last > PROGRESS_SECONDS:
            print(f"{number} of {len(listed)} tensors", flush=True)
            last = time.monotonic()
