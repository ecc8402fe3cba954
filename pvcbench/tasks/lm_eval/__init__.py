"""Tasks of lm-eval: its documents and requests, and its metrics of stored responses."""
