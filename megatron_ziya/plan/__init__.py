"""What a run costs before it is paid for; nothing here computes with weights.

estimate.py   bubble, FLOPs and time of a recipe
memory.py     bytes that a rank holds in a step, by part
drawing.py    a pipeline schedule as a picture
trace.py      a traced step of a run beside its prediction
commands.py   `ziya plan`
"""
