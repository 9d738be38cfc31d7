"""Checkpoints on disk: logical names and shapes, whatever the layout that wrote them; no pickle.

distributed.py    the format, its reader and its writers; a training run saves and loads its shares here
huggingface.py    to and from Hugging Face, with the proof that nothing changed
commands.py       `ziya convert ...`
"""
