"""The command `hpcimg`: one module for each subcommand, parsing and dispatch in `main`.

A subcommand's module has `HELP`, `add_arguments(parser)` and `run(args) -> int`,
which returns the exit code.
"""
