"""The data factory: raw text in, kept shards and a reason for every drop out. Ziya2's five parts, one file each:

preprocess.py (with language.py)    1. encoding, language, Traditional to Simplified, normal form
score.py                            2. perplexity by an n-gram model, or a classifier; rank within language and source
rules.py (rules_*.py, page.py, words.py, lists/)   3. rules on documents, paragraphs, sentences
decontaminate.py                    and no quotation of a benchmark
deduplicate.py (fingerprints.py)    4. address, content, likeness; index.py, partition.py: what was seen; clusters.py
evaluate.py                         5. the gate of Table 1; sheet.py: the same by hand; tighten.py: when it fails
recipe.py    every knob             read.py, warc.py  raw files to `Document`s   storage.py   files of documents
parts.py     the parts on a shard   steps.py          a step on all shards       keys.py      what is done already
pipeline.py  the run, resumable     resolve.py        who stays, in order        tally.py     what was counted
executors.py processes, Ray         finish.py         formats.py, outputs        estimate.py  hours for N terabytes
commands.py  the command line       look.py           inspect and explain        report.py    pictures.py: the page
output.py    what may be overwritten: only what an earlier run wrote
The inner loops are C++: ../../csrc/factory*.{cpp,h}, module `ziya_data._factory`.
"""
