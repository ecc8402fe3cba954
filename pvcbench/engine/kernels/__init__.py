"""The programs that compute attention on a GPU, behind one interface."""
