"""What a run costs before it is paid for; knows only the configuration and the schedules.

estimate.py   weights, memory per rank, bubble, FLOPs and time of a recipe
drawing.py    a pipeline schedule as a picture
commands.py   `ziya plan`
"""
