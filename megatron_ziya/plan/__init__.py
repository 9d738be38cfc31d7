"""What a run costs before it is paid for; knows only the configuration and the schedules.

estimate.py   weights, memory per rank, bubble, FLOPs and time of a recipe
drawing.py    a pipeline schedule as a picture
trace.py      a traced step of a run beside its prediction
commands.py   `ziya plan`
"""
