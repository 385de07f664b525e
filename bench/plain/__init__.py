"""The same networks as one writes them from their papers in an afternoon: torch and timm, and nothing of ours.

Each is a module [B, C, Y, X] float32 → loss, a scalar. `OURS` says which of our weights are its own: the beginnings of
its names → those of ours, where they differ.
"""
