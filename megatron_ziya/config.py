"""Every knob of a training run: frozen, typed, strict. A recipe is TOML; `--section.key value` goes over it.

An unknown key is an error that names the nearest known one, so a typo never becomes a silent default.
The help of a knob is the string under it. Each part of the program receives only its own section.
"""

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tomli_w

from megatron_ziya.strict import divides, from_dict, pairs, plain, require


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
    lost_after_seconds: float = 60.0
    """A rank that shows no sign of life for so long counts as lost, and the others end. One that dies is noticed
    within about five seconds."""
    stop_after: int = 10
    """Steps in a row with a loss or gradient that is not finite, before the run gives up. Each is skipped. (How long a
    run is says `steps`.)"""
    check_replicas_every: int = 0
    """Steps between comparisons of weights that several ranks hold (SHA-256); 0 = never."""
    deterministic: bool = False
    """Only deterministic algorithms of torch (`torch.use_deterministic_algorithms`, and cuBLAS's `:4096:8` workspace):
    an operation that has none stops the run instead of giving other bits each time. On a CPU the engine repeats to the
    bit without it, so it costs time for nothing there (new memory is filled first); it matters on a GPU."""
    debug: bool = False
    """Prove for each operation that it reads no weights that are still on their way; several times slower."""


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
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} is not a positive number")
        divides("model.heads", self.heads, self.hidden_size, "the hidden size")
        divides("model.kv_heads", self.kv_heads, self.heads, "heads")
        require(self.head_size % 2 == 0, f"head size {self.head_size} is odd; rotary embedding needs pairs")

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
    """Slices of layers per stage (`interleaved` needs 2 or more, `zb-v` 2)."""
    schedule: Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"] = "1f1b"
    """`zb-*` split the backward pass (zero bubble, arXiv 2401.10241): input gradients first, weight gradients when a
    stage would wait. `ziya plan --draw-schedule` shows each. NOT STATED by Ziya2; with its 2 stages any will do."""
    layout: tuple[float, ...] = ()
    """Layers per slice, in steps of 0.5 (a cut between attention and MLP), in the order of the forward pass; empty =
    as even as whole layers allow. The head costs about 0.6 of a layer at 13B: `[20.5, 19.5]` balances two stages."""
    spread_head: bool = False
    """Each pipeline stage holds a share of the head's vocabulary (arXiv 2411.05288), split over its tensor-parallel
    ranks as well, instead of the last stage all of it: no stage is slower than the others, for one or two
    micro-batches' activations more. `ziya plan` shows what it gains. NOT STATED by Ziya2, because one head on one of
    two stages costs it 1 % of a step."""
    sequence: bool = True
    """Sequence parallel: between the matrices a tensor-parallel rank keeps only its share of the tokens."""
    bucket_mib: float = 25.0
    """Gradients are reduced in buckets of this size while the backward pass still runs."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it: `selective` the core of attention
    (arXiv 2205.05198, section 5), `full` everything but each layer's input."""
    recompute_layers: int = 0
    """Only the first so many layers of each stage's slice recompute; 0 = all of them."""
    invariant: bool = False
    """Layout-invariant mode: weights have the same bits after any number of data-parallel ranks, pipeline stages,
    schedules, micro-batch sizes and restarts. Every row of the batch is a micro-batch (`data.micro_batch_size` is
    then 1) and gradients are summed in a fixed binary tree over the rows. The cost is measured and printed at start.
    What it cannot keep: `tensor` and `sequence`. Tensor parallel cuts the products themselves, so partial sums meet
    in an order of their own; each value of these two knobs has its own bits, the same for every layout around it."""


@dataclass(frozen=True)
class Source:
    name: str = ""
    paths: tuple[str, ...] = ()
    """Prefixes of indexed datasets (`prefix.bin`, `prefix.idx`)."""
    weight: float = 1.0
    """Share of the samples, relative to the other sources. Ziya2's replay is an equal share of the earlier data."""
    packing: Literal["stream", "documents"] = "stream"
    """`stream`: documents run on, cut at the sequence length. `documents`: whole documents, the rest padded."""
    order: Literal["ziya", "megatron"] = "ziya"
    """`ziya`: our shuffle, epoch after epoch. `megatron`: the order of megatron-core's GPT dataset, to the bit; it
    depends on `run.steps`."""
    tokens: float = 0.0
    """Budget of the whole run, never exceeded; stands instead of `weight`. 0 = none."""
    replay: float = 0.0
    """So many times the tokens of all sources that are not replay; stands instead of `weight`. Ziya2's stages 2 and 3
    replay as many tokens of earlier data as they bring new ones: 1.0. 0 = no replay."""
    max_epochs: float = 0.0
    """Never more passes over the source than this; 0 = as often as needed. NOT STATED by Ziya2."""
    prompt_loss: bool = True
    """False: tokens of a prompt (`ziya index build --prompt-until`) are not scored. NOT STATED by Ziya2 ("still
    next-token prediction"), so they are."""


@dataclass(frozen=True)
class Data:
    sequence_length: int = 4096
    global_batch_size: int = 256
    """Sequences a step, over all ranks."""
    ramp_up_start: int = 0
    """Sequences of the first step; grows to `global_batch_size`. 0 = no ramp-up. NOT STATED by Ziya2 or LLaMA2
    (GPT-3, arXiv 2005.14165, section 2.3, ramps up linearly)."""
    ramp_up_increment: int = 0
    """Sequences by which the batch grows at a time; 0 = `ramp_up_start`."""
    ramp_up_steps: int = 0
    """Step at which the batch has its full size."""
    micro_batch_size: int = 1
    document_mask: bool = True
    """Documents of one sequence do not see each other and positions restart. Ziya2: stage 1 yes, stages 2 and 3
    no (readers' notes of v1; whether positions restart is NOT STATED, so they do when the mask is on)."""
    pad_id: int = 0
    """Ziya2's configuration pads with 0 (`<unk>`); padding is never seen and never scored."""
    sources: tuple[Source, ...] = ()
    cache: str = ""
    """Folder for indexes that all processes share (`ziya index prepare` fills it); empty = each builds its own."""
    check_reads: bool = False
    """Compare each 16 MiB of tokens with its checksum when it is first read."""

    def rows(self, step: int) -> int:
        """Sequences of `step` (from 0), over all ranks."""
        if step >= self.ramp_up_steps or not self.ramp_up_start:
            return self.global_batch_size
        return self.ramp_up_start + self._increment * (step * self._increments // self.ramp_up_steps)

    def rows_before(self, step: int) -> int:
        """Sequences of all steps before `step`: the number of the step's first sample."""
        ramp = min(step, self.ramp_up_steps) if self.ramp_up_start else 0
        return sum(self.rows(i) for i in range(ramp)) + self.global_batch_size * (step - ramp)

    @property
    def _increment(self) -> int:
        return self.ramp_up_increment or self.ramp_up_start

    @property
    def _increments(self) -> int:
        return (self.global_batch_size - self.ramp_up_start) // self._increment


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    """Peak. NOT STATED by Ziya2; 1e-4 keeps LLaMA2's habit of a final rate of 10 %."""
    minimum: float = 1e-5
    """Final learning rate (Ziya2 5.2)."""
    warmup: float = 0.01
    """Share of the steps (Ziya2 5.2: 1 %, LLaMA2: 0.4 %)."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """Restarts with each stage (NOT STATED by Ziya2). `wsd`: warm-up, stable, decay (MiniCPM, arXiv 2404.06395)."""
    decay: float = 0.1
    """Share of the steps, the last ones, in which `wsd` goes down to `minimum` (MiniCPM: 10 % suffice)."""
    decay_shape: Literal["linear", "1-sqrt"] = "1-sqrt"
    """How `wsd` goes down; 1 - sqrt does best in arXiv 2405.18392."""
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
    weights: Literal["bf16", "fp16", "fp32", "fp64"] = "bf16"
    """Weights and activations. Masters, gradients and optimizer state stay FP32 (FP64 for `fp64`, used in tests)."""
    loss_scale: float = 65536.0
    """`fp16` only: what the loss is multiplied by at first, so that small gradients do not become zero (arXiv
    1710.03740). Halves when a gradient overflows; that step is skipped. The default is torch.amp.GradScaler's."""
    loss_scale_window: int = 2000
    """Good steps in a row after which the loss scale doubles (torch.amp.GradScaler's default)."""
    kernels: Literal["auto", "triton", "torch", "compiled", "apex"] = "auto"
    """Which kernels run; `auto` = Triton on a GPU, plain PyTorch on a CPU. Logged at start. `compiled` has torch's
    compiler make RMSNorm, rotary and SwiGLU on a CPU, for some 4 % of a step (docs/speed.md). Never the default: it
    needs a C++ compiler at run time, and the first step takes seconds longer; the log tells how many.
    The matrix products are not compiled: their backward passes add into FP32 buffers, which torch's compiler cannot see
    through."""


@dataclass(frozen=True)
class Checkpoint:
    every: int = 0
    """Steps between checkpoints; 0 = only at the end."""
    keep: int = 2
    """Newest checkpoints to keep; 0 = all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for ever, beside the newest; 0 = none.
    NOT STATED in the paper because it tells nothing of its checkpoints."""
    asynchronous: bool = True
    """Train on while a checkpoint is written: it is copied to host memory during the next forward and backward pass,
    for which the next update waits if it must, and the copy is freed when it is on the disk. NOT STATED in the paper;
    torchtitan and Megatron-LM offer it."""
    resume: bool = True
    """Go on from the newest good checkpoint of the run directory, if there is one."""


@dataclass(frozen=True)
class Log:
    every: int = 1
    """Steps between lines on the terminal; `metrics.jsonl` has every step."""
    tensorboard: bool = True
    report: bool = True
    """Draw `report.html` when the run ends."""
    trace: bool = False
    """Write when each pipeline action of one step (the third of this start) began and ended, per rank, to
    `trace.jsonl`; `ziya plan --trace RUN_DIR` lays the prediction over it. That step is synchronised, so slower."""
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

    def __post_init__(self) -> None:
        if self.parallel.invariant and self.data.micro_batch_size != 1:
            object.__setattr__(self, "data", dataclasses.replace(self.data, micro_batch_size=1))


def load(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and put `--section.key value` pairs over it.

    Raises FileNotFoundError, or ValueError for TOML that does not parse, unknown keys and wrong types.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such recipe; see examples/ for recipes to start from")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for section, key, value in pairs(overrides):
        table = raw.setdefault(section, {})
        require(isinstance(table, dict), f"{path}: {section}={table!r} must be a table")
        table[key] = value
    sizes = sorted(set(raw.get("model", {})) - {"load"})
    if raw.get("model", {}).get("load") and sizes:
        raise ValueError(f"model.load brings its own sizes; remove model.{sizes[0]} or model.load")
    return from_dict(Recipe, raw)


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load` of it gives the same recipe."""
    raw = plain(dataclasses.asdict(recipe))
    if recipe.model.load:
        raw["model"] = {"load": recipe.model.load}
    return tomli_w.dumps(raw)


def differences(file: Path, recipe: Recipe) -> list[str]:
    """`section.key: old -> new` for each knob that the recipe in `file` has otherwise; [] when there is no such file.

    Left out is what says only how long a run is, where it lies and how it logs, and what an older program did not know.
    """
    if not file.is_file():
        return []
    old, new = (tomllib.loads(text) for text in (file.read_text(encoding="utf-8"), to_toml(recipe)))
    found = []
    for section in new.keys() & old.keys() - {"log"}:
        for key in new[section].keys() & old[section].keys():
            before, now = old[section][key], new[section][key]
            if before != now and (section, key) not in (("run", "steps"), ("run", "directory")):
                short = len(f"{before}{now}") < 60  # else sources, which have lines of their own
                found.append(f"{section}.{key}" + (f": {before} -> {now}" if short else ""))
    return sorted(found)
