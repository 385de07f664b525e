"""Autoencoders on shards: config → model, loss, DeepSpeed engine → loop → embedding → evaluation.

This file must exist: it makes the package win over `train.py` beside it, which would otherwise import itself.
"""
