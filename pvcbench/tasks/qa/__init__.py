"""Data sets that are described by a YAML file each: `task=qa task.data=NAME`."""
