"""The indexed dataset: token ids on disk, and the rows of tokens that training reads from them.

In the order of the road:
    build.py     text files -> tokens -> a dataset, with several processes
    note.py      how far a build is, so that a killed one goes on
    inputs.py    the text files themselves: jsonl, jsonl.gz, jsonl.zst, parquet, txt
    format.py    the bytes of `.bin`, `.idx` and `.meta.json` (Megatron's format, documented as a table)
    writer.py    IndexedDatasetWriter: token ids -> the three files, never half-written
    reader.py    IndexedDataset: the three files -> read-only views of documents
    verify.py    reads every byte of a dataset and lists what is wrong with it
    merge.py     several datasets into one
    split.py     validation documents, chosen by a hash of the document
    stats.py     how long documents are, which ids are frequent
    samples.py   a source as an endless shuffled stream, cut into samples
    packing.py   a source as rows of whole documents
    megatron.py  a source in the order of megatron-core's GPT dataset, to the bit
    cache.py     the indexes of these three on disk, shared by all processes
    source.py    Source: one kind of data; weights, budgets, replay and caps as shares of the samples
    mix.py       Mix, Sample: several sources; what the trainer reads
    history.py   a mix that is changed in the middle of a run
    trace.py     which documents were in step N
    commands.py  `ziya index build | show | verify | merge | stats | prepare | trace`
The C++ side is data_tools/csrc/indexed.cpp; its types are in ziya_data/_indexed.pyi. Nothing here imports torch.
"""
