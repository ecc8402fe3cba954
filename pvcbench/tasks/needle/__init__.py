"""Needle in a haystack: facts hidden in long text and asked for at the end."""
