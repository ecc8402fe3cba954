"""What the shared and the non-shared pivotal contexts are for (PyramidInfer, section 3.2.2)."""
