"""Every knob of a training run: frozen, typed, strict. A recipe is TOML; `--section.key value` goes over it.

An unknown key is an error that names the nearest known one, so a typo never becomes a silent default.
The help of a knob is the string under it. Each part of the program receives only its own section.
"""

import dataclasses
import difflib
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w


@dataclass(frozen=True)
class Run:
    directory: str = "runs/run"
    """Everything the run writes goes under this folder (README, "A run directory")."""
    stage: str = "pretrain"
    """Name of the stage, written with each line of the metrics."""
    steps: int = 100
    """Optimizer steps of the whole run."""
    seed: int = 1234
    """Seeds the initial weights (per tensor name) and the order of the data."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    threads: int = 1
    """CPU threads a process; more than one per process slows a busy box down five to ten times."""
    timeout_seconds: int = 600
    """How long a rank waits for the others before it gives up."""


@dataclass(frozen=True)
class Architecture:
    """The shape of a LLaMA-family model. The defaults are LLaMA2-7B."""

    vocabulary_size: int = 32000
    """True size, as the tokenizer counts it; padding for tensor parallel is added and stripped by the engine."""
    hidden_size: int = 4096
    intermediate_size: int = 11008
    layers: int = 32
    heads: int = 32
    kv_heads: int = 0
    """Heads of keys and values (grouped-query attention); 0 = as many as `heads`."""
    rms_norm_eps: float = 1e-5
    """LLaMA2 ships 1e-5, Ziya2 1e-6: always carried explicitly."""
    rope_theta: float = 10000.0
    rope_scaling: float = 1.0
    """Linear scaling: positions are divided by this factor."""
    max_positions: int = 4096
    tied: bool = False
    """The head uses the embedding's weight."""

    def __post_init__(self) -> None:
        if self.kv_heads == 0:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("vocabulary_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads"):
            _require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} is not a positive number")
        _divides("model.heads", self.heads, self.hidden_size, "the hidden size")
        _divides("model.kv_heads", self.kv_heads, self.heads, "heads")
        _require(self.head_size % 2 == 0, f"head size {self.head_size} is odd; rotary embedding needs pairs")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads

    def parameters(self) -> int:
        """Number of weights, padding not counted."""
        h, f = self.hidden_size, self.intermediate_size
        layer = 2 * h * h + 2 * h * self.kv_heads * self.head_size + 3 * h * f + 2 * h
        return layer * self.layers + h + self.vocabulary_size * h * (1 if self.tied else 2)

    def flops_per_token(self, sequence: int) -> float:
        """FLOPs of forward and backward for one token, the causal half of attention counted (PaLM, appendix B)."""
        matrices = self.parameters() - (0 if self.tied else self.vocabulary_size * self.hidden_size)
        return 6.0 * matrices + 6.0 * self.layers * self.hidden_size * sequence


@dataclass(frozen=True)
class Model(Architecture):
    load: str = ""
    """Checkpoint folder to start from; its architecture is used and no size may be given beside it."""

    def architecture(self) -> Architecture:
        """The sizes alone."""
        return Architecture(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Architecture)})


@dataclass(frozen=True)
class Parallel:
    tensor: int = 1
    """Ranks that share each matrix."""
    pipeline: int = 1
    """Stages that the layers are cut into."""
    virtual: int = 1
    """Slices of layers per stage (`interleaved` needs 2 or more)."""
    schedule: Literal["gpipe", "1f1b", "interleaved"] = "1f1b"
    sequence: bool = True
    """Sequence parallel: between the matrices a tensor-parallel rank keeps only its share of the tokens."""
    bucket_mib: float = 25.0
    """Gradients are reduced in buckets of this size while the backward pass still runs."""
    recompute: Literal["none", "full"] = "none"
    """`full` keeps only each layer's input and computes the rest again in the backward pass."""


@dataclass(frozen=True)
class Source:
    name: str = ""
    paths: tuple[str, ...] = ()
    """Prefixes of indexed datasets (`prefix.bin`, `prefix.idx`)."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources. Ziya2's replay is an equal share of the earlier data."""
    packing: Literal["stream", "documents"] = "stream"
    """`stream`: documents run on, cut at the sequence length. `documents`: whole documents, the rest padded."""


@dataclass(frozen=True)
class Data:
    sequence_length: int = 4096
    global_batch_size: int = 256
    """Sequences a step, over all ranks."""
    micro_batch_size: int = 1
    document_mask: bool = True
    """Documents of one sequence do not see each other and positions restart. Ziya2: stage 1 yes, stages 2 and 3
    no (readers' notes of v1; whether positions restart is NOT STATED, so they do when the mask is on)."""
    pad_id: int = 0
    """Ziya2's configuration pads with 0 (`<unk>`); padding is never seen and never scored."""
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    """Peak. NOT STATED by Ziya2; 1e-4 keeps LLaMA2's habit of a final rate of 10 %."""
    minimum: float = 1e-5
    """Final learning rate (Ziya2 5.2)."""
    warmup: float = 0.01
    """Share of the steps (Ziya2 5.2: 1 %, LLaMA2: 0.4 %)."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Restarts with each stage (NOT STATED by Ziya2)."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    """NOT STATED by Ziya2; torch's default."""
    weight_decay: float = 0.1
    """On matrices only."""
    clip: float = 1.0
    """Bound of the gradient's global norm; 0 = no clipping."""


@dataclass(frozen=True)
class Precision:
    weights: Literal["bf16", "fp32", "fp64"] = "bf16"
    """Weights and activations. Masters, gradients and optimizer state stay FP32 (FP64 for `fp64`, used in tests)."""
    kernels: Literal["auto", "triton", "torch", "apex"] = "auto"
    """Which kernels run; `auto` = Triton on a GPU, plain PyTorch on a CPU. Logged at start."""


@dataclass(frozen=True)
class Checkpoint:
    every: int = 0
    """Steps between checkpoints; 0 = only at the end."""
    keep: int = 2
    """Newest checkpoints to keep."""
    resume: bool = True
    """Go on from the newest checkpoint of the run directory, if there is one."""


@dataclass(frozen=True)
class Log:
    every: int = 1
    """Steps between lines on the terminal; `metrics.jsonl` has every step."""
    tensorboard: bool = True
    report: bool = True
    """Draw `report.html` when the run ends."""
    peak_tflops: float = 0.0
    """What counts as 100 % for `mfu`, per process; 0 = the GPU's data sheet, or a measured matmul on a CPU."""


@dataclass(frozen=True)
class Recipe:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    parallel: Parallel = field(default_factory=Parallel)
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    precision: Precision = field(default_factory=Precision)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)


def load(path: Path | str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """Read a recipe and put `--section.key value` pairs over it.

    Raises FileNotFoundError, or ValueError for TOML that does not parse, unknown keys and wrong types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; see examples/ for recipes to start from")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for section, key, value in _pairs(overrides):
        raw.setdefault(section, {})[key] = value
    sizes = sorted(set(raw.get("model", {})) - {"load"})
    if raw.get("model", {}).get("load") and sizes:
        raise ValueError(f"model.load brings its own sizes; remove model.{sizes[0]} or model.load")
    return from_dict(Recipe, raw)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load` of it gives the same recipe."""
    raw = _plain(dataclasses.asdict(recipe))
    if recipe.model.load:
        raw["model"] = {"load": recipe.model.load}
    return tomli_w.dumps(raw)


def from_dict(kind: type, raw: Any, where: str = "") -> Any:
    """Build dataclass `kind` from a dict, strictly: no unknown keys, no wrong types.

    Raises ValueError with the key, the rule and the nearest known name.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where or 'recipe'}={raw!r} must be a table")
    hints = typing.get_type_hints(kind)
    for key in raw:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(hints)}"
            raise ValueError(f"unknown key {_join(where, key)}; {hint}")
    return kind(**{key: _convert(hints[key], value, _join(where, key)) for key, value in raw.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        _require(value in arguments, f"{where}={value!r} must be one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        value = [value] if isinstance(value, str) else value
        _require(isinstance(value, list | tuple), f"{where}={value!r} must be a list")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    assert isinstance(hint, type) and not isinstance(hint, types.UnionType), hint
    fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    _require(fits, f"{where}={value!r} must be {'a number' if hint in (int, float) else hint.__name__}")
    return value


def _pairs(arguments: typing.Sequence[str]) -> list[tuple[str, str, Any]]:
    """`--section.key value` pairs -> (section, key, value); the value is read as TOML, else taken as a string."""
    pairs = []
    items = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--") and "=" in a else [a])]
    for flag, text in zip(items[::2], [*items[1::2], None], strict=False):
        section, dot, key = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not dot or text is None:
            raise ValueError(f"{flag!r} is not an override; write --section.key value, such as --run.steps 20")
        try:
            value = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            value = text
        pairs.append((section, key, value))
    return pairs


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _divides(name: str, value: int, whole: int, what: str) -> None:
    if value < 1 or whole % value:
        fits = ", ".join(str(n) for n in range(1, min(whole, 256) + 1) if whole % n == 0)
        raise ValueError(f"{name}={value} does not divide {whole} ({what}); use {fits}")


def check(recipe: Recipe, architecture: Architecture, world_size: int) -> None:
    """Hold the recipe against the model and the number of processes. Raises ValueError with what to do."""
    p, d = recipe.parallel, recipe.data
    for name in ("tensor", "pipeline", "virtual"):
        _require(getattr(p, name) > 0, f"parallel.{name}={getattr(p, name)} must be 1 or more")
    _divides("parallel.tensor", p.tensor, architecture.kv_heads, "heads of keys and values")
    _divides("parallel.tensor", p.tensor, architecture.intermediate_size, "the intermediate size")
    stages = p.pipeline * p.virtual
    _require(
        stages <= architecture.layers,
        f"parallel.pipeline x virtual = {stages} is more than the {architecture.layers} layers; use fewer",
    )
    _require(
        (p.schedule == "interleaved") == (p.virtual > 1),
        f"parallel.schedule={p.schedule} with virtual={p.virtual}: interleaved needs virtual >= 2, the others 1",
    )
    layout = p.tensor * p.pipeline
    _require(
        world_size % layout == 0,
        f"{world_size} processes do not fit tensor x pipeline = {layout}; start a multiple of {layout}",
    )
    replicas = world_size // layout
    share = replicas * d.micro_batch_size
    _require(
        d.global_batch_size % share == 0,
        f"data.global_batch_size={d.global_batch_size} is not a multiple of data-parallel ranks x micro-batch = "
        f"{replicas} x {d.micro_batch_size}; use a multiple of {share}",
    )
    micro_batches = d.global_batch_size // share
    _require(
        p.schedule != "interleaved" or micro_batches % p.pipeline == 0,
        f"{micro_batches} micro-batches: the interleaved schedule needs a multiple of parallel.pipeline={p.pipeline}",
    )
    _require(
        d.sequence_length <= architecture.max_positions,
        f"data.sequence_length={d.sequence_length} is longer than the model's {architecture.max_positions} positions",
    )
    tokens = d.micro_batch_size * d.sequence_length
    _require(
        not p.sequence or tokens % p.tensor == 0,
        f"sequence parallel: {tokens} tokens a micro-batch do not split over parallel.tensor={p.tensor}",
    )
    _require(recipe.run.steps > 0, f"run.steps={recipe.run.steps} must be 1 or more")
    _require(len(d.sources) > 0, "data.sources is empty; name at least one indexed dataset")
