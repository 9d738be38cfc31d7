"""The training system: from a recipe and indexed data to a better model.

train.py       the entry, read top to bottom          trainer.py     what a step needs, and the step
config.py      every knob                             checks.py      what a recipe may ask for
model/         LLaMA2 in plain PyTorch, and the table that cuts it over ranks
parallel/      mesh, collectives, tensor / pipeline / data parallel
batches.py     indexed data -> the micro-batches of a step
optimizer.py   AdamW on sharded FP32 masters          metrics.py     what a step prints and writes
process.py     what a process does before it computes: device, threads, allocator
precision.py   types of numbers, FP16's loss scale    faults.py      lost ranks, replicas that differ
checkpoint/    sharded checkpoints; Hugging Face, both ways; growth of the vocabulary
evaluate/      held-out loss and generation           plan/          what a run costs before it is paid for
cli.py         the `ziya` command                     launch.py      `ziya train`: checked first, a process a rank
report.py      one page with the pictures
"""
