"""LongBench v1 and LongBench-E (arXiv 2308.14508)."""
