"""shardgen: archives of microscopy in, verified WebDataset shards out."""
