"""Conformance: cases of queries, keys and values with what every published variant of a method keeps of them."""
