"""Configuration: what a run can be told, how it is written and checked, how Hydra composes it."""
