"""Objectives: pure functions of tensors; each docstring states its reduction."""
