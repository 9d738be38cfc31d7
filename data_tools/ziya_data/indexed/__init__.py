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

What a source of a mix may say (source.py), under [[data.sources]] of a recipe:
    weight         share of the samples; or instead of it
    tokens         a budget of the whole run, never exceeded; or
    replay         times the tokens of all sources that are not replay: 1.0 replays as much as is new
    max_epochs     never more passes than this; the other weighted sources take what it leaves
    packing        "stream": documents run on, cut every S tokens; "documents": whole ones, best-fit, padded
    order          "ziya": ours, of which a run of any length is a beginning; "megatron": that of megatron-core's GPT
                   dataset to the bit, for a run that goes on from Megatron; it depends on the number of steps, holds 4
                   bytes a document and epoch, and is of one source: sources are mixed our way, not BlendedDataset's
    prompt_loss    false: the prompt's tokens (`ziya index build --prompt-until`) are read but not predicted
and, under [data], for all of them:
    cache          folder of indexes that processes and nodes share; `ziya index prepare` fills it before the run
    check_reads    compare each 16 MiB with its checksum when it is first read, so that a flipped bit stops the run

How fast and how large: docs/dataset.md.
"""
