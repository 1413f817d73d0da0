"""Which mode, block, quantisation and batch to run a model with, and how sure that is."""
