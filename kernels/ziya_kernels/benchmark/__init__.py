"""What each operator costs, beside what others make of it: `ziya benchmark kernels`.

commands.py   the command
cases.py      the sizes of LLaMA2, and for each kernel its inputs, bytes and FLOPs there
peers.py      the sides: ours, PyTorch's, and Liger, flash-attn and apex where they are installed
roof.py       what a device could do at best: from its own properties, from data sheets, or measured
measure.py    rounds in which the sides take turns; time, peak memory, error against FP64
table.py      the rows as text, Markdown, CSV and a picture
"""
