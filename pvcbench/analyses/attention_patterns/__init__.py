"""Where attention goes, head by head, and what it predicts of eviction (Fu, six attention patterns)."""
