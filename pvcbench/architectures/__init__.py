"""Which architectures of transformers run: a tiny model of each, its trial, and what was found."""
