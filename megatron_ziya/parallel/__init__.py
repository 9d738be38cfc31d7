"""3D parallelism on plain torch.distributed: gloo on CPUs, NCCL on GPUs.

mesh.py           ranks -> groups, a frozen value passed as an argument
collectives.py    the conjugate pairs of operations with their backward
shared.py         the same through shared memory, between processes of one machine that compute on its CPU
tensor.py         column and row linear, vocabulary-parallel embedding, sequence parallel
cross_entropy.py  head and loss over a split vocabulary, of the tensor axis or of all stages
slices.py         how the layers are cut into pipeline slices, and what each costs
schedule.py       pipeline schedules as data
spread.py         the same with the head spread over all stages
verify.py         proof that a schedule runs, and what it takes
pipeline.py       the one executor of any schedule
trace.py          when each action of a step began and ended
bucket.py         weights and gradients in flat buffers, cut into ZeRO-1 shares
data.py           the buckets of a rank: reduced during the backward pass, gathered during the next forward
invariant.py      gradients summed in one fixed tree: the same bits in every layout
stale.py          debug mode: proof that no operation reads weights that are still on their way
"""
