"""Methods that can stream a document, a cell that holds its budget, and likelihoods by torch's own log-softmax."""

from dataclasses import replace

from pvcbench.engine.evict import Cell
from tiny import METHODS

STREAMS = {name: method for name, method in METHODS.items() if "streaming" in method.protocols}
STREAMS["window_only"] = replace(METHODS["streaming_llm"], sinks=0)


def cell(method, budget=16):
    """A cell that holds this many entries, or the reference."""
    return Cell("test", method, None if method.reference else budget, True, everything=method.reference)


def logprobs(logits, ids):
    """Log-probabilities of every token but the first, by torch's own log-softmax."""
    return logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
