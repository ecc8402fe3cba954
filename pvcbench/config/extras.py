"""The `pip install` commands that error messages suggest for optional packages; they fit a checkout and a wheel."""

import shlex

EXTRAS = {  # those of pyproject.toml
    "flash": ("flash-attn>=2.8",),
    "eval": ("lm-eval[hf]>=0.4.13", "nltk>=3.9.1", "wonderwords>=3"),
    "longbench": ("rouge==1.0.1", "jieba>=0.42.1"),
    "qa": ("rouge==1.0.1", "rouge-score>=0.1.2", "nltk>=3.9.1"),
    "reasoning": ("reasoning-gym>=0.1.25",),
    "slurm": ("hydra-submitit-launcher>=1.2", "submitit>=1.5"),
    "report": ("jinja2>=3.1",),
}


def pip_install(extra: str) -> str:
    """The command that installs what an extra of pyproject.toml brings."""
    return f"pip install {shlex.join(EXTRAS[extra])}"
