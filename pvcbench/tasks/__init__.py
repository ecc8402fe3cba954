"""Tasks: samples and scores. They know no torch module and no method."""
