"""From raw text to token samples; never imports torch.

document.py   `Document`, the one record that the data side passes along
tokenizer_json.py  a byte-level `tokenizer.json` as data, and its fingerprint
factory/      the data factory: clean, score, filter, de-duplicate, evaluate; every dropped document has a reason
tokenizer/    LLaMA's SentencePiece vocabulary, and more Chinese characters for it
indexed/      Megatron's .bin/.idx: writer, reader, and the mix of samples that training reads
The C++ side is in data_tools/csrc.
"""
