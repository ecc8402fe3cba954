"""The command `pvcbench`: its subcommands, its one-line errors and its exit codes."""
