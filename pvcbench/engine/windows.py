"""Which layers of a model slide, by its configuration."""


def layer_windows(config) -> list[int | None]:
    """The sliding window of each decoder layer, None where it attends to everything."""
    window, layers = getattr(config, "sliding_window", None), config.num_hidden_layers
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return [None] * layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return [window if kind == "sliding_attention" else None for kind in kinds]
