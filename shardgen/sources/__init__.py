"""Ways to find fields: one file per layout on disk."""
