"""`python -m shardgen`, where the command `shardgen` is not on the path."""

from shardgen.cli import main

main()
