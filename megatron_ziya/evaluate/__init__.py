"""How good a model is: held-out loss, comparable between vocabularies, and what it writes.

perplexity.py   loss per token, and bits per character so that different tokenizers compare
generate.py     continues a prompt, with our model or with transformers
commands.py     `ziya evaluate perplexity | generate`
"""
