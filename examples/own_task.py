"""A task of your own: samples are made from (seed, index) alone, and `score` says what an answer is worth.

    python examples/own_task.py

The context lists people and where they live, and the question asks for one of the towns. The model has random weights,
which load at once and show that the task runs. Its answers mean nothing, as a warning says: write `model="smollm2"` for
answers that do.
"""

import random

import pvcbench
from pvcbench import Sample, Task

NAMES = "Ada Ben Cleo Dan Eve Finn Gus Hana Ida Jon".split()
TOWNS = "Oslo Lima Rome Cairo Delhi Paris Quito Tunis Accra Minsk".split()


class Towns(Task):
    """Who lives where? `people` is a setting: it changes the samples, so it is part of a run's id."""

    name = "towns"

    def __init__(self, people: int = 10):
        self.people = people

    def size(self, seed):
        return 20

    def sample(self, seed, index):
        draw = random.Random(f"{seed}/{index}")
        names, towns = draw.sample(NAMES, self.people), draw.sample(TOWNS, self.people)
        facts = [f"{name} lives in {town}." for name, town in zip(names, towns, strict=True)]
        asked = draw.randrange(self.people)
        start = sum(len(fact) + 1 for fact in facts[:asked])
        return Sample(
            id=f"{seed}-{index}",
            context=" ".join(facts),
            question=f"In which town does {names[asked]} live?",
            answers=(towns[asked],),
            max_new_tokens=8,
            spans={"fact": (start, start + len(facts[asked]))},  # the rows say how much of it each cell keeps
        )

    def score(self, sample, output):
        return {"accuracy": float(sample.answers[0].casefold() in output.casefold())}


def main() -> None:
    """Measures H2O on the task and shows how much of the fact that was asked for is left."""
    summary = pvcbench.evaluate(
        model="random",
        task=Towns(),
        methods=["h2o"],
        budgets=[0.25, 0.5],
        limit=3,
        results="example_results",
        wandb={"mode": "disabled"},
    )
    print(summary[["method", "budget", "kept_fraction", "score", "samples"]].to_string(index=False))

    rows = pvcbench.load(summary.attrs["folder"])
    rows["fact kept"] = [sum(spans["fact"]) / len(spans["fact"]) for spans in rows["spans_kept"]]
    print("\nThe share of the fact that is still in the cache, mean over layers:")
    print(rows.groupby(["method", "budget"])["fact kept"].mean().to_string())


if __name__ == "__main__":
    main()
