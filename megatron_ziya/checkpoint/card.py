"""The model card of an exported folder (README.md with the Hub's front matter), made of what the run itself wrote down.

Nothing in it is typed by hand: shape and steps are the checkpoint's, stages and sources those of its recipe and of the
recipes of the checkpoints it started from, as far as they can still be read, and scores those of the files that
`ziya evaluate perplexity --out` wrote.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ziya.checkpoint.huggingface import dtype_name, read_json
from megatron_ziya.checkpoint.load import stored_dtype
from megatron_ziya.checkpoint.reader import Reader, resolve


def model_card(reader: Reader, title: str, evaluations: Sequence[Path] = ()) -> str:
    """Markdown. Raises FileNotFoundError or ValueError for an evaluation file that is none."""
    a = reader.architecture
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- llama", "- megatron-ziya"]
    kv = f", {a.kv_heads} of keys and values" if a.kv_heads != a.heads else ""
    text = [
        *head,
        "---",
        f"# {title}",
        "",
        f"{a.parameters():,} weights ({dtype_name(stored_dtype(reader, 'embedding.weight'))}): {a.layers} layers, "
        f"hidden {a.hidden_size:,}, {a.heads} heads{kv}, MLP {a.intermediate_size:,}, vocabulary {a.vocabulary_size:,}"
        f"{' (tied)' if a.tied else ''}, {a.max_positions:,} positions, RoPE theta {a.rope_theta:g}, RMSNorm eps "
        f"{a.rms_norm_eps:g}.",
        "",
        f"Exported from {_origin(reader)}. A LLaMA in the form of Hugging Face: `AutoModelForCausalLM.from_pretrained` "
        "loads it.",
    ]
    trained = [(found, recipe) for found in stages(reader) if (recipe := _recipe(found))]
    if trained:
        text += ["", "## Training", "", *_training(trained)]
    if evaluations:
        text += ["", "## Evaluation", "", *_evaluation(evaluations)]
    return "\n".join(text) + "\n"


def stages(reader: Reader) -> list[Reader]:
    """The checkpoint and those that its run and the runs before it started from, the first of all first."""
    found = [reader]
    while load := _recipe(found[0]).get("model", {}).get("load", ""):
        try:
            before = Reader(resolve(load), check=False)
        except (FileNotFoundError, ValueError):  # it was moved, or removed: the card begins here
            break
        if any(before.path.samefile(other.path) for other in found):
            break
        found.insert(0, before)
    return found


def _origin(reader: Reader) -> str:
    if reader.run == "conversion":
        return f"a conversion of {Path(str(reader.manifest.get('converted_from', 'a model'))).name}"
    return f"step {reader.step:,} of run {reader.run}; the weights' sum is `{reader.weights_sum or 'not recorded'}`"


def _recipe(reader: Reader) -> dict[str, Any]:
    file = reader.path / "recipe.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _training(trained: Sequence[tuple[Reader, dict[str, Any]]]) -> list[str]:
    lines = ["| stage | steps | tokens | sequence | batch | learning rate | weights | sources (share of the samples) |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    total = 0
    for reader, recipe in trained:
        data, optimizer = recipe["data"], recipe["optimizer"]
        tokens = reader.manifest.get("rows", 0) * data["sequence_length"]
        total += tokens
        drawn = reader.manifest.get("consumed_samples", {})
        everything = sum(drawn.values()) or 1
        shares = ", ".join(f"{name} {count / everything:.1%}" for name, count in drawn.items())
        lines.append(
            f"| {reader.manifest.get('stage', '')} | {reader.step:,} | {tokens:,} | {data['sequence_length']:,} | "
            f"{data['global_batch_size']:,} | {optimizer['learning_rate']:g}, {optimizer['schedule']} to "
            f"{optimizer['minimum']:g} | {recipe['precision']['weights']} | {shares} |"
        )
    return [*lines, "", f"{total:,} tokens in all. The recipes lie in the checkpoints, every knob as it was in force."]


def _evaluation(files: Sequence[Path]) -> list[str]:
    lines = ["| model | text | characters | bits a character | perplexity a token |", "|---|---|---|---|---|"]
    for file in files:
        languages = read_json(file).get("languages")
        if not isinstance(languages, dict):
            raise ValueError(f"{file} has no `languages`; give what `ziya evaluate perplexity --out` wrote")
        lines += [
            f"| {file.stem} | {language} | {found['characters']:,} | {found['bits_per_character']:.4f} | "
            f"{found['perplexity']:,.2f} |"
            for language, found in languages.items()
        ]
    return [*lines, "", "Held-out text, measured with `ziya evaluate perplexity`."]
