"""Prefill once, fork, evict, decode: the only code that touches transformers' internals.

Imports torch, transformers, jaxtyping and the standard library only, so that it runs on a bare GPU machine.
"""
