"""Old places of classes and functions that a configuration's `_target_` may still name, and their places of today."""

from collections.abc import Mapping

MOVED = {
    "pvcbench.models.hf": "pvcbench.models.hub.hf",
    "pvcbench.models.random": "pvcbench.models.random_weights.random",
    "pvcbench.models.smollm2": "pvcbench.models.embedded.smollm2",
    "pvcbench.tasks.attention_consistency": "pvcbench.analyses.attention_consistency.task",
    "pvcbench.tasks.attention_patterns": "pvcbench.analyses.attention_patterns.task",
    "pvcbench.tasks.context_redundancy": "pvcbench.analyses.context_redundancy.task",
    "pvcbench.tasks.pivotal_roles": "pvcbench.analyses.pivotal_roles.task",
    "pvcbench.tasks.lm_eval": "pvcbench.tasks.lm_eval.task",
    "pvcbench.tasks.longbench": "pvcbench.tasks.longbench.task",
    "pvcbench.tasks.needle": "pvcbench.tasks.needle.task",
    "pvcbench.tasks.ruler": "pvcbench.tasks.ruler.task",
}


def target_now(target: str) -> str:
    """The place of today of what a `_target_` names."""
    if target in MOVED:
        return MOVED[target]
    module, dot, name = target.rpartition(".")
    return MOVED.get(module, module) + dot + name


def today(node: object) -> object:
    """A configuration, of plain types, with every `_target_` at its place of today."""
    if isinstance(node, Mapping):
        return {
            key: target_now(value) if key == "_target_" and isinstance(value, str) else today(value)
            for key, value in node.items()
        }
    return [today(one) for one in node] if isinstance(node, list) else node
