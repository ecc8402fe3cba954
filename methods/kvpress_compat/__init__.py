"""Runs presses of an installed kvpress, unchanged, beside another transformers than the one kvpress asks for.

`installed` imports single modules of kvpress without its own start; `made` builds a press from its name and options,
and `prepared` shows it the model where it asks for that. `layer` hands a press one layer of one sample, as kvpress'
hooks do, and reads what it scores or keeps. `facts` finds out, before anything is measured, what a press needs and why
it cannot run here.
"""
