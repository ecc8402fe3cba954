"""RULER's thirteen sets (arXiv:2404.06654), written with the model's tokenizer: `task=ruler`."""
