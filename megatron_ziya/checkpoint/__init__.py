"""Checkpoints on disk: logical names and shapes, whatever the layout that wrote them; no pickle.

distributed.py    the format and its writers
format.py         a file, a manifest, and the checksums of both
folder.py         the checkpoints of a run: which is the latest, which go; the lock of a run directory
reader.py         reads boxes of logical tensors, checks what it reads
training.py       a rank's shares of weights, masters and moments: to segments of logical tensors, and back
background.py     a save while training goes on
load.py           a whole model in one process, from a checkpoint, a run directory or a Hugging Face folder
huggingface.py    names, config.json, reading a Hugging Face folder
meta.py           Meta's own release, read
megatron.py       legacy Megatron-LM checkpoints, read
convert.py        whole models both ways
streaming.py      safetensors written one tensor at a time
proof.py          what was written is read again and run beside transformers
card.py           the model card of an exported folder
grow.py           rows for new tokens
commands.py       `ziya convert ...`
"""
