"""What cutting the context's entries costs, by layer and share (PyramidInfer, section 3.1)."""
