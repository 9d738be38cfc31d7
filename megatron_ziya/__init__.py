"""The training system: from a recipe and indexed data to a better model.

train.py       the entry, read top to bottom          config.py      every knob
model/         LLaMA2 in plain PyTorch, and the table that cuts it
parallel/      mesh, collectives, tensor / pipeline / data parallel
optimizer.py   AdamW on sharded FP32 masters          metrics.py     what a step prints and writes
checkpoint/    sharded checkpoints; Hugging Face, both ways
evaluate/      perplexity and generation              plan/          what a run costs before it is paid for
cli.py         the `ziya` command                     launch.py      `ziya train`: torchrun with early, clear errors
"""
