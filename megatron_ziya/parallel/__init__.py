"""3D parallelism on plain torch.distributed: gloo on CPUs, NCCL on GPUs.

mesh.py           ranks -> groups, a frozen value passed as an argument
collectives.py    the conjugate pairs of operations with their backward
tensor.py         column and row linear, vocabulary-parallel embedding, sequence parallel
cross_entropy.py  head and loss over a split vocabulary
schedule.py       pipeline schedules as data, and the verifier
pipeline.py       the one executor of any schedule
data.py           gradient buckets, ZeRO-1 shards, overlap
"""
