"""What can be loaded: a model of the hub or a folder, random weights of a shape, the embedded model."""
