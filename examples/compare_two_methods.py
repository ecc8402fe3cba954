"""Two methods on the same prompts: which one finds more needles at the same cache size?

    python examples/compare_two_methods.py

It runs the embedded model on three short prompts, in under a minute on two idle cores. Three prompts tell nothing
apart: raise REPEATS before you believe a difference. The rows stay in the folder RESULTS, and a second call measures
nothing.
"""

import pvcbench

RESULTS, REPEATS = "example_results", 1


def main() -> None:
    """Measures both methods and shows how they compare, over all prompts and prompt by prompt."""
    summary = pvcbench.evaluate(
        model="smollm2",
        task="needle",
        methods=["h2o", "streaming_llm"],
        budgets=[0.25, 0.5],
        task__lengths=[256],
        task__depths=[20, 50, 80],
        task__max_new_tokens=16,
        task__repeats=REPEATS,
        results=RESULTS,
        wandb={"mode": "disabled"},
    )
    print(summary[["method", "budget", "kept_fraction", "score", "samples"]].to_string(index=False))

    rows = pvcbench.load(summary.attrs["folder"])  # one row for each prompt in each cell
    print("\nScores of each prompt, by method and budget:")
    print(rows.pivot(index="sample", columns=["method", "budget"], values="score").to_string())


if __name__ == "__main__":
    main()
