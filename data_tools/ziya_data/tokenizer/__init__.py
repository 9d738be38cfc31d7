"""Tokenizers: SentencePiece models read, widened with Chinese characters, and measured.

tokenizer.py    `Tokenizer`: text to ids and back, exactly as sentencepiece does it, in parallel
fast.py         the guard before gigatoken: only models and texts that it encodes as sentencepiece does
model_file.py   the SentencePiece model as data; writes a folder that sentencepiece and transformers both load
build.py        the genuine LLaMA vocabulary, rebuilt from a llama.cpp vocabulary file (.gguf)
corpus.py       reads texts from .txt and .jsonl files and counts their characters
expand.py       adds characters behind the old ids; `row_sources`: which old ids spelled each new piece
compare.py      tokens per character, byte fallback and speed of two tokenizers; table, JSON, picture
commands.py     `ziya tokenizer from-gguf | expand | compare`
"""

from ziya_data.tokenizer.expand import row_sources
from ziya_data.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer", "row_sources"]
