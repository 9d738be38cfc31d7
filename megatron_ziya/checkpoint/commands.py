"""`ziya convert from-hf | from-meta | from-megatron | to-hf | reshard | grow-vocabulary | info | verify`."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_ziya.config import Architecture

if TYPE_CHECKING:
    from megatron_ziya.checkpoint.proof import Proof


def _parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"ziya convert {name}",
        description=description,
        epilog=f"example:\n  ziya convert {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _into_checkpoint(name: str, description: str, example: str, metavar: str, holds: str) -> argparse.ArgumentParser:
    """What the three commands that make a checkpoint have in common."""
    parser = _parser(name, description, example)
    parser.add_argument("source", type=Path, metavar=metavar, help=holds)
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint folder to write")
    parser.add_argument("--skip-verify", action="store_true", help="no proof afterwards; the record says so")
    return parser


def from_hf(argv: Sequence[str]) -> int:
    """Writes a Hugging Face LLaMA folder as a checkpoint, and proves it."""
    what = "Write a Hugging Face LLaMA folder as a checkpoint, bit for bit."
    parser = _into_checkpoint("from-hf", what, "llama2-7b base", "HF_DIR", "safetensors or .bin, one file or shards")
    given = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint import convert

    return _converted(given.out, lambda: convert.from_hf(given.source, given.out, not given.skip_verify))


def from_meta(argv: Sequence[str]) -> int:
    """Writes a LLaMA folder of Meta's own release as a checkpoint, and proves it."""
    what = "Write params.json and consolidated.*.pth, Meta's release, as a checkpoint."
    holds = "with params.json, consolidated.*.pth and tokenizer.model"
    parser = _into_checkpoint("from-meta", what, "llama-2-7b base", "META_DIR", holds)
    parser.add_argument(
        "--max-positions", type=int, default=0,
        help="params.json has none; default 4096, 2048 where eps is 1e-6 (LLaMA 1)",
    )  # fmt: skip
    given = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint import convert

    return _converted(
        given.out, lambda: convert.from_meta(given.source, given.out, not given.skip_verify, given.max_positions)
    )


def from_megatron(argv: Sequence[str]) -> int:
    """Writes a legacy Megatron-LM checkpoint of a LLaMA as a checkpoint of ours, and proves it."""
    what = "Write a legacy Megatron-LM checkpoint of a LLaMA as a checkpoint of ours."
    holds = "with latest_checkpointed_iteration.txt, or an iteration"
    parser = _into_checkpoint("from-megatron", what, "megatron-run base", "DIR", holds)
    parser.add_argument(
        "--vocabulary-size", type=int, default=0, help="the tokenizer's, to cut the padding off; default: keep all rows"
    )
    given = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint import convert

    return _converted(
        given.out, lambda: convert.from_megatron(given.source, given.out, not given.skip_verify, given.vocabulary_size)
    )


def to_hf(argv: Sequence[str]) -> int:
    """Writes a checkpoint as a Hugging Face folder, and proves it."""
    parser = _parser(
        "to-hf", "Write a checkpoint as a Hugging Face folder.", "runs/demo/stage3 out --tokenizer tokenizer"
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory: its newest")
    parser.add_argument("out", type=Path, metavar="OUT", help="the model folder to write")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: the one the checkpoint carries")
    parser.add_argument("--dtype", help="float32, bfloat16, …; default: as stored")
    parser.add_argument(
        "--evaluation", type=Path, nargs="+", default=[], metavar="JSON",
        help="from `ziya evaluate perplexity --out`; the model card (README.md) gets a table of them",
    )  # fmt: skip
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file, in 10^9 bytes (default 5)")
    parser.add_argument("--skip-verify", action="store_true", help="no proof afterwards; the record says so")
    options = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint import convert
    from megatron_ziya.checkpoint.huggingface import dtype_of

    return _converted(
        options.out,
        lambda: convert.to_hf(
            options.source,
            options.out,
            dtype_of(options.dtype) if options.dtype else None,
            options.tokenizer,
            not options.skip_verify,
            int(options.shard_gb * 1e9),
            options.evaluation,
        ),
    )


def reshard(argv: Sequence[str]) -> int:
    """Writes a checkpoint again in another number of files, and proves it."""
    parser = _parser(
        "reshard",
        "Write a checkpoint again in another number of files, moments and all. (Any layout loads any checkpoint as it\n"
        "is: this is for the disk.)",
        "runs/demo/stage1 archived --files 1",
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory: its newest")
    parser.add_argument("out", type=Path, metavar="OUT", help="the checkpoint folder to write")
    parser.add_argument("--files", type=int, default=1, help="how many, of about one size (default 1)")
    parser.add_argument("--weights-only", action="store_true", help="leave masters and moments out")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read it again and compare every tensor's SHA-256 (the default)",
    )
    options = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint import convert

    return _converted(
        options.out,
        lambda: convert.reshard(options.source, options.out, options.files, options.weights_only, options.verify),
    )


def _converted(out: Path, work: Callable[[], "Proof | None"]) -> int:
    """Do a conversion into `out`, alone, and print its proof. Returns the exit code."""
    from megatron_ziya.checkpoint.folder import claimed

    with claimed(out):
        proof = work()
    passed = proof is None or proof.passed
    print(proof.table() if proof else "proof               skipped")
    print(f"{'written':<20}{out if passed else str(out) + '.failed'}")
    return 0 if passed else 1


def grow_vocabulary(argv: Sequence[str]) -> int:
    """Gives a model rows for the pieces of a wider tokenizer."""
    from megatron_ziya.checkpoint import grow
    from megatron_ziya.checkpoint.folder import claimed

    parser = _parser(
        "grow-vocabulary",
        "Give a model rows for the new pieces of a wider tokenizer.\n\nhow a new row is made:\n"
        + "\n".join(f"  {name:<11}{how}" for name, how in grow.METHODS.items())
        + "\n  embedding  (the head alone) the same row as the embedding has",
        "--model llama2-7b --tokenizer wide-tokenizer --out grown",
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a Hugging Face folder, a checkpoint or a run directory (its newest)"
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="from `ziya tokenizer expand`")
    parser.add_argument("--out", type=Path, required=True, help="the model folder, or checkpoint of weights, to write")
    methods = list(grow.METHODS)
    parser.add_argument("--method", choices=methods, default="mean", help="for embedding and head (default mean)")
    parser.add_argument("--head-method", choices=[*methods, "embedding"], help="for the head (default: as --method)")
    options = parser.parse_args(list(argv))

    with claimed(options.out):
        grown = grow.grow_vocabulary(options.model, options.tokenizer, options.out, options.method, options.head_method)
    if grown.old_rows > grown.old_pieces:
        print(f"{grown.old_rows - grown.old_pieces:,} padding rows dropped")
    head = f", of the head by {options.head_method}" if options.head_method else ""
    print(f"{options.out}: {grown.old_pieces:,} -> {grown.rows:,} rows, new ones by {options.method}{head}")
    return 0


def info(argv: Sequence[str]) -> int:
    """Says what a checkpoint, run directory or Hugging Face folder holds."""
    parser = _parser("info", "Say what a checkpoint, run directory or Hugging Face folder holds.", "runs/demo/stage1")
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a checkpoint, a run directory (its newest) or a Hugging Face folder"
    )
    options = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint.huggingface import dtype_name
    from megatron_ziya.checkpoint.load import open_weights, stored_dtype
    from megatron_ziya.checkpoint.reader import Reader

    weights = open_weights(options.path, check=False)
    a: Architecture = weights.architecture
    rows = [("path", str(weights.path))]
    if isinstance(weights, Reader):
        manifest, files = weights.manifest, [weights.path / name for name in weights.manifest["files"]]
        rows.append(("checkpoint", f"format {manifest['format']}, step {weights.step}"))
        rows.append(("state", ", ".join(sorted(weights.kinds()))))
        rows.append(("sum of the weights", weights.weights_sum or "not recorded"))
        record = manifest
    else:
        files = weights.files
        rows.append(("Hugging Face", f"{weights.config.get('architectures', ['LlamaForCausalLM'])[0]}"))
        record_file = weights.path / "conversion.json"
        record = json.loads(record_file.read_text()) if record_file.is_file() else {}
    size = sum(file.stat().st_size for file in files)
    rows += [
        ("weights", f"{a.parameters():,} in {dtype_name(stored_dtype(weights, 'embedding.weight'))}"),
        ("files", f"{len(files)}, {size / 1e9:.3f} GB"),
        ("vocabulary", f"{a.vocabulary_size:,}{', tied' if a.tied else ''}"),
        ("shape", f"{a.layers} layers, hidden {a.hidden_size}, intermediate {a.intermediate_size}"),
        ("heads", f"{a.heads}, of keys and values {a.kv_heads}, size {a.head_size}"),
        ("positions", f"{a.max_positions:,}, rope theta {a.rope_theta:g}, linear scaling {a.rope_scaling:g}"),
        ("norm eps", f"{a.rms_norm_eps:g}"),
        ("tokenizer", f"SHA-256 {weights.tokenizer}" if weights.tokenizer else "unknown"),
    ]
    for key in ("stage", "consumed_samples", "converted_from", "grown_from", "method"):
        if key in record:
            rows.append((key.replace("_", " "), str(record[key])))
    if "proof" in record:
        proof = record["proof"]
        rows.append(("proof", proof if isinstance(proof, str) else "passed" if proof["passed"] else "FAILED"))
    for name, text in rows:
        print(f"{name:<20}{text}")
    return 0


def verify(argv: Sequence[str]) -> int:
    """Reads all of a checkpoint: checksums, and every tensor whole."""
    parser = _parser("verify", "Check the checksums of a checkpoint, and that every tensor is whole.", "runs/demo/base")
    parser.add_argument("path", type=Path, metavar="CHECKPOINT", help="a checkpoint, or a run directory: its newest")
    options = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint.reader import Reader, resolve

    reader = Reader(resolve(options.path))
    reader.check()
    segments, files = sum(len(file.segments) for file in reader.files), len(reader.files)
    print(f"{reader.path}: {segments} segments in {files} files have their checksums, of step {reader.step}")
    for kind in sorted(reader.kinds()):
        strange = [name for name in reader.shapes if not reader.read(name, kind).isfinite().all()]
        if strange:
            raise ValueError(f"{reader.path}: {kind} {strange[0]} holds values that are not finite")
        print(f"{kind}: {len(reader.shapes)} tensors are whole and finite")
    if reader.weights_sum:
        found = reader.sum_weights()
        if found != reader.weights_sum:
            raise ValueError(f"{reader.path}: the weights sum to {found}, the run saved {reader.weights_sum}")
        print(f"sum of the weights: {found}, as it was when they were saved")
    return 0
