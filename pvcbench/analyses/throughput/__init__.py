"""Tables and figures of speed and memory."""
