"""A run's model as files that others can use without this code."""

from train.export.folder import export_run, load

__all__ = ["export_run", "load"]
