"""The `ziya` command: a table with one line a subcommand, in the order of the road."""

import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    name: str
    function: str
    help: str


COMMANDS = [
    Command("factory train-scorer", "ziya_data.factory.commands:train_scorer", "language model for the quality score"),
    Command("factory run", "ziya_data.factory.commands:run", "raw text -> clean shards, drop reasons, a report"),
    Command("factory inspect", "ziya_data.factory.commands:inspect", "look at dropped documents by reason"),
    Command("factory explain", "ziya_data.factory.commands:explain", "one document's way through every part"),
    Command("factory tighten", "ziya_data.factory.commands:tighten", "which thresholds to move after a failed gate"),
    Command("factory sheet", "ziya_data.factory.commands:sheet", "a page to mark kept items by hand, and its verdict"),
    Command("tokenizer from-gguf", "ziya_data.tokenizer.commands:from_gguf", "a LLaMA vocabulary out of a GGUF file"),
    Command("tokenizer curve", "ziya_data.tokenizer.commands:curve", "what each size of vocabulary gives and costs"),
    Command("tokenizer expand", "ziya_data.tokenizer.commands:expand", "add characters and words to a vocabulary"),
    Command("tokenizer compare", "ziya_data.tokenizer.commands:compare", "tokens per character of two tokenizers"),
    Command("index build", "ziya_data.indexed.commands:build", "clean shards -> .bin/.idx, Megatron's format"),
    Command("index show", "ziya_data.indexed.commands:show", "what an indexed dataset holds"),
    Command("index verify", "ziya_data.indexed.commands:verify", "structure, bounds and checksums of a dataset"),
    Command("index stats", "ziya_data.indexed.commands:stats", "document lengths and frequent ids"),
    Command("index merge", "ziya_data.indexed.commands:merge", "several datasets into one, validation split off"),
    Command("index prepare", "ziya_data.indexed.commands:prepare", "check a recipe's data and build its indexes"),
    Command("index trace", "ziya_data.indexed.commands:trace", "which documents were in step N of a run"),
    Command("convert from-hf", "megatron_ziya.checkpoint.commands:from_hf", "Hugging Face folder -> checkpoint"),
    Command(
        "convert from-meta", "megatron_ziya.checkpoint.commands:from_meta", "Meta's consolidated.*.pth -> checkpoint"
    ),
    Command(
        "convert from-megatron", "megatron_ziya.checkpoint.commands:from_megatron", "legacy Megatron-LM -> checkpoint"
    ),
    Command("convert reshard", "megatron_ziya.checkpoint.commands:reshard", "a checkpoint in another number of files"),
    Command("convert grow-vocabulary", "megatron_ziya.checkpoint.commands:grow_vocabulary", "rows for new tokens"),
    Command("convert info", "megatron_ziya.checkpoint.commands:info", "what a checkpoint or model folder holds"),
    Command("convert verify", "megatron_ziya.checkpoint.commands:verify", "checksums and completeness of a checkpoint"),
    Command("plan", "megatron_ziya.plan.commands:plan", "memory, bubble and FLOPs of a recipe before it runs"),
    Command("train", "megatron_ziya.launch:train", "run a recipe on this machine, on one or more processes"),
    Command("convert to-hf", "megatron_ziya.checkpoint.commands:to_hf", "checkpoint -> Hugging Face folder, proven"),
    Command("evaluate perplexity", "megatron_ziya.evaluate.commands:perplexity", "held-out loss, bits per character"),
    Command("evaluate generate", "megatron_ziya.evaluate.commands:generate", "continue a prompt"),
    Command("benchmark kernels", "ziya_kernels.benchmark.commands:kernels", "time, roof and error of each kernel here"),
    Command("report", "megatron_ziya.report:report", "one page with the pictures of a run, or of the whole road"),
]


def find(words: Sequence[str]) -> tuple[Command, list[str]] | None:
    """The command that `words` begin with, and the words that are left for it."""
    for length in (2, 1):
        for command in COMMANDS:
            if command.name == " ".join(words[:length]):
                return command, list(words[length:])
    return None


def usage(group: str = "") -> str:
    """The road in order, one line a command; only those of `group`, if one is given."""
    listed = [command for command in COMMANDS if not group or command.name.split()[0] == group]
    width = max(len(command.name) for command in listed)
    lines = [f"  ziya {command.name:<{width}}  {command.help}" for command in listed]
    return "\n".join(["usage: ziya COMMAND ...   (ziya COMMAND --help shows an example)", "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. A user's mistake is told in one line, with exit code 2."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"megatron-ziya {importlib.metadata.version('megatron-ziya')}")
        return 0
    found = find(words)
    if found is None:
        return _unknown(words)
    command, rest = found
    module, _, function = command.function.partition(":")
    try:
        code = int(getattr(importlib.import_module(module), function)(rest) or 0)
        sys.stdout.flush()  # here, so that a reader that is gone is noticed below
        return code
    except ModuleNotFoundError as error:
        print(f"ziya {command.name}: error: {error}; install megatron-ziya[data,hf]", file=sys.stderr)
    except BrokenPipeError:  # whoever read what we print has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell counts SIGPIPE
    except (ValueError, OSError) as error:
        print(f"ziya {command.name}: error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"ziya {command.name}: stopped", file=sys.stderr)
        return 130
    return 2


def _unknown(words: Sequence[str]) -> int:
    """A group alone lists its commands; anything else is told the nearest name."""
    groups = {command.name.split()[0] for command in COMMANDS}
    if words[0] in groups and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(usage(words[0]))
        return 0 if len(words) > 1 else 2
    name = " ".join(words[:2])
    close = difflib.get_close_matches(name, [command.name for command in COMMANDS], n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else "`ziya --help` lists them"
    print(f"ziya: no command {name!r}; {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
