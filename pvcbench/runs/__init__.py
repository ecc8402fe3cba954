"""A run: its identity and folder, the runner that fills it, and what is done with a finished one."""
