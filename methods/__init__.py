"""Eviction methods, one file each; see conf/method for their names and settings."""
