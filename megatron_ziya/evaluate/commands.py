"""`ziya evaluate perplexity | generate`."""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from megatron_ziya.checkpoint.load import Weights
    from ziya_data.tokenizer import Tokenizer


USUAL_TOKENS = 64


def _parser(name: str, description: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"ziya evaluate {name}",
        description=description,
        epilog=f"example:\n  ziya evaluate {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a checkpoint, a run directory (its newest) or a Hugging Face folder"
    )
    parser.add_argument("--tokenizer", type=Path, help="tokenizer folder; default: the one that lies with the model")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto (default) = a GPU if there is one"
    )
    parser.add_argument("--dtype", help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; default: torch's choice, OMP_NUM_THREADS or all cores"
    )
    return parser


def perplexity(argv: Sequence[str]) -> int:
    """Held-out loss, perplexity and bits per character, by language."""
    parser = _parser(
        "perplexity",
        "Held-out loss and perplexity per token, bits and perplexity per character.",
        "--model runs/demo/stage1 --tokenizer wide --text en=en.jsonl zh=zh.jsonl",
    )
    parser.add_argument("--text", nargs="+", required=True, metavar="LANGUAGE=FILE", help="jsonl files with a `text`")
    parser.add_argument("--sequence-length", type=int, help="default: the model's positions, at most 4,096")
    parser.add_argument("--max-characters", type=int, default=0, help="of each file; 0 (default) = all")
    options = parser.parse_args(list(argv))
    texts = _texts(options.text)

    from megatron_ziya.checkpoint.load import model_of
    from megatron_ziya.evaluate import perplexity as measure

    weights, tokenizer, device, dtype = _open(options)
    length = options.sequence_length or min(weights.architecture.max_positions, 4096)
    if not 1 <= length <= weights.architecture.max_positions:
        raise ValueError(
            f"--sequence-length {length} does not fit the model's {weights.architecture.max_positions} positions"
        )
    begin = time.monotonic()
    model = model_of(weights, device, dtype)
    results = {}
    for language, file in texts.items():
        documents = measure.read_texts(file, options.max_characters)
        results[language] = measure.evaluate(model, tokenizer, documents, length, device)
        print(
            f"{language}: {results[language].predicted:,} of {results[language].tokens:,} tokens predicted, "
            f"{time.monotonic() - begin:.1f} s",
            flush=True,
        )
    print(measure.table(results))
    if options.out:
        _write(options.out, {
            "model": str(weights.path),
            "step": getattr(weights, "step", None),
            "tokenizer": tokenizer.fingerprint(),
            "vocabulary": tokenizer.vocab_size,
            "sequence_length": length,
            "max_characters": options.max_characters,
            "dtype": str(dtype).removeprefix("torch."),
            "languages": measure.to_json(results),
        })  # fmt: skip
    return 0


def generate(argv: Sequence[str]) -> int:
    """Continues prompts."""
    parser = _parser(
        "generate", "Continue a prompt.", '--model runs/demo/stage1 --tokenizer wide --prompt "The history of"'
    )
    parser.add_argument("--prompt", action="append", required=True, help="may be given more than once")
    parser.add_argument("--tokens", type=int, help="at most so many new tokens (default 64, or what fits)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) = greedy")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens of this joint probability (default 1)"
    )
    parser.add_argument("--seed", type=int, default=1234, help="of what is drawn (default 1234)")
    parser.add_argument("--bos", action="store_true", help="begin with <s>, as LLaMA was trained; our own runs are not")
    parser.add_argument(
        "--with",
        dest="engine",
        choices=("megatron-ziya", "transformers"),
        default="megatron-ziya",
        help="which program's model and sampling (default megatron-ziya)",
    )
    options = parser.parse_args(list(argv))

    from megatron_ziya.checkpoint.load import model_of
    from megatron_ziya.evaluate import generate as generation

    sampling = generation.Sampling(
        1 if options.tokens is None else options.tokens, options.temperature, options.top_p, options.seed
    )
    weights, tokenizer, device, dtype = _open(options)
    prompts = [[tokenizer.bos_id] * options.bos + tokenizer.encode(text) for text in options.prompt]
    if options.tokens is None:
        left = weights.architecture.max_positions - max(map(len, prompts))
        sampling = replace(sampling, tokens=max(1, min(USUAL_TOKENS, left)))
    ends = tokenizer.eos_id, tokenizer.vocab_size
    if options.engine == "transformers":
        if not (options.model / "config.json").is_file():
            raise ValueError(f"--with transformers needs a Hugging Face folder; {options.model} is none")
        found = generation.generate_with_transformers(options.model, prompts, sampling, *ends, dtype)
    else:
        model = model_of(weights, device, dtype)
        found = [generation.generate(model, prompt, sampling, *ends) for prompt in prompts]
    samples = []
    for text, prompt, new in zip(options.prompt, prompts, found, strict=True):
        samples.append({"prompt": text, "text": tokenizer.decode([*prompt, *new]), "tokens": len(new)})
        print(f"{samples[-1]['text']}\n", flush=True)
    if options.out:
        _write(options.out, {
            "model": str(weights.path),
            "engine": options.engine,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "samples": samples,
        })  # fmt: skip
    return 0


def _open(options: argparse.Namespace) -> "tuple[Weights, Tokenizer, torch.device, torch.dtype]":
    """The weights, the tokenizer that fits them, and where and in what type to compute."""
    import torch

    from megatron_ziya.checkpoint.convert import check_vocabulary
    from megatron_ziya.checkpoint.huggingface import dtype_of
    from megatron_ziya.checkpoint.load import open_weights
    from megatron_ziya.checkpoint.reader import require_same_tokenizer
    from megatron_ziya.process import prepare
    from ziya_data.tokenizer import Tokenizer

    device = prepare(options.device, options.threads)
    weights = open_weights(options.model)
    inside = weights.path / "huggingface"
    folder = options.tokenizer or (inside if inside.is_dir() else weights.path)
    if options.tokenizer is None and not any((folder / f"tokenizer.{kind}").is_file() for kind in ("model", "json")):
        raise FileNotFoundError(f"no tokenizer lies with the model {weights.path}; give --tokenizer FOLDER")
    tokenizer = Tokenizer.load(folder)
    require_same_tokenizer(weights.tokenizer, weights.path, tokenizer.fingerprint(), f"--tokenizer {folder}")
    check_vocabulary(folder, tokenizer.vocab_size, weights.architecture.vocabulary_size)
    usual = torch.float32 if device.type == "cpu" else torch.bfloat16
    return weights, tokenizer, device, dtype_of(options.dtype) if options.dtype else usual


def _texts(pairs: Sequence[str]) -> dict[str, Path]:
    texts: dict[str, Path] = {}
    for pair in pairs:
        language, equals, file = pair.partition("=")
        if not (language and equals and file) or language in texts:
            raise ValueError(f"--text {pair} is not LANGUAGE=FILE, each language once; write for example zh={pair}")
        texts[language] = Path(file)
    return texts


def _write(file: Path, content: dict[str, Any]) -> None:
    from megatron_ziya.checkpoint.convert import write_json

    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, content)
