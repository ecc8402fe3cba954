"""Intervals, summaries, significance and rankings: pure functions of a table of rows."""
