"""Styles and figures: pure functions of a table of rows."""
