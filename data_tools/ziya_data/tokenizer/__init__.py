"""Tokenizers: SentencePiece and byte-level BPE, read, widened with Chinese characters and words, and measured.

tokenizer.py    `Tokenizer`: text to ids and back, exactly as sentencepiece does it, in parallel
fast.py         the guard before gigatoken: only models and texts that it encodes as sentencepiece does
byte_level.py   byte-level BPE (`tokenizer.json`, such as SmolLM2's), as a `Tokenizer` and as what can be widened
model_file.py   the SentencePiece model as data; writes a folder that sentencepiece and transformers both load
build.py        the genuine LLaMA vocabulary, rebuilt from a llama.cpp vocabulary file (.gguf)
corpus.py       reads texts from .txt and .jsonl files and counts their characters
vocabulary.py   a tokenizer of either kind as what can be widened; which pieces are never reached
words.py        frequent words of a corpus, by SentencePiece's BPE training
expand.py       adds characters and words behind the old ids; `row_sources`: which old ids spelled each new piece
curve.py        tokens per character, memory and FLOPs against the number of pieces added; table, JSON, picture
compare.py      tokens per character, byte fallback and speed of two tokenizers; table, JSON, picture
commands.py     `ziya tokenizer from-gguf | curve | expand | compare`
"""

from ziya_data.tokenizer.expand import row_sources
from ziya_data.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer", "row_sources"]
