"""The operators that a LLaMA training step spends its time in; each in Triton, each with a plain PyTorch twin.

dispatch.py       start here: `select("auto", device)` returns the set of functions that the model calls
reference.py      the plain twins: the oracle of every Triton kernel, and the product itself on a CPU;
                  reference_loss.py has those of cross_entropy.py
attention.py      causal flash attention, grouped heads, document boundaries without a mask in memory, in rows or
                  one after another (varlen); its kernels are in attention_forward.py and attention_backward.py
attention_short.py  what a CPU runs for rows of one document and 128 to 511 tokens
compiled.py       RMSNorm, rotary and SwiGLU by torch's compiler, for a CPU with a C++ compiler
rotary.py         rotary embedding of query and key in one launch, in FP32; in place on the fused QKV
rms_norm.py       RMSNorm, FP32 statistics; alone, or with the sum with the residual in the same pass
swiglu.py         silu(gate) * up on one fused projection
softmax.py        scale + causal mask + softmax (Ziya2's fused operator)
cross_entropy.py  loss a token from logits, FP32, over a vocabulary or a rank's share of one
head_loss.py      head and loss a chunk of tokens at a time, so that all logits never exist at once
adamw.py          one pass over flat FP32 master weights, moments and gradients
apex.py           NVIDIA apex's operators behind the same signatures, where it is really installed
benchmark/        what each operator costs on this machine: `ziya benchmark kernels`
launch.py         what every Triton file shares: argument checks and the static tile tables

Letters: B rows of a batch, S tokens a row, T tokens (B * S), H hidden, N query heads, K key/value heads,
D head size, F width of the MLP, V vocabulary.
"""

from ziya_kernels.dispatch import CHOICES, Kernels, select
from ziya_kernels.reference import rotary_table

__all__ = ["CHOICES", "Kernels", "rotary_table", "select"]
