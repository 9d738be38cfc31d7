"""The indexed dataset: token ids on disk, and the rows of tokens that training reads from them.

In the order of the road:
    build.py     text files -> tokens -> a dataset, with several processes
    inputs.py    the text files themselves: jsonl, jsonl.gz, jsonl.zst, parquet, txt
    format.py    the bytes of `.bin`, `.idx` and `.meta.json` (Megatron's format, documented as a table)
    writer.py    IndexedDatasetWriter: token ids -> the three files, never half-written
    reader.py    IndexedDataset: the three files -> read-only views of documents
    verify.py    reads every byte of a dataset and lists what is wrong with it
    samples.py   a source as an endless shuffled stream, cut into samples
    packing.py   a source as rows of whole documents
    mix.py       Source, Mix, Sample: several sources by weight; what the trainer reads
    commands.py  `ziya index build | show | verify`
The C++ side is data_tools/csrc/indexed.cpp; its types are in ziya_data/_indexed.pyi. Nothing here imports torch.
"""
