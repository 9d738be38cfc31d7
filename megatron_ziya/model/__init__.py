"""llama.py reads like the paper and knows nothing of ranks; parallelize.py holds the table that cuts it over them.

linear.py has the one matrix product, whose backward adds straight into the gradient buffer. recompute.py runs a layer
again in the backward pass.
"""
