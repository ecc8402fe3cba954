"""Imported by the process that others are forked from."""

import forked

forked.warm()
