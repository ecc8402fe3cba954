"""The cost model: prefill, fork, step and memory, counted from a model's shape, fitted to measurements."""
