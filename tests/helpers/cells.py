"""Made-up rows of cells whose scores are given one by one; a score that is None is a failed row, "none" no row."""

from rows import table

BYTES = 1000  # of the cache per token


def rows_of(cells, tokens, budget="0.4", kept=0.4, reads="prompt", why="4 entries are fewer than the 4 sinks", **more):
    """Rows as `load_table` gives them: `cells` maps methods to a score per sample, `tokens` are the prompts'.

    Methods at another budget than `budget` are named `method@budget`; `full` is the reference.
    """
    made = []
    for name, scores in cells.items():
        method, _, own = name.partition("@")
        full, share = method == "full", 1.0 if method == "full" else float(own) if own else kept
        for number, (score, length) in enumerate(zip(scores, tokens, strict=True)):
            if isinstance(score, str):
                continue
            known, lost = {"sample": str(number), "cluster": str(number), "prompt_sha256": str(number)}, score is None
            known |= {"task": "mine", "method": method, "budget": "1.0" if full else own or budget, "reference": full}
            known |= {"reads": reads if not full else "prompt", "prompt_tokens": length, "sample_info": {}}
            known |= {"stratum": "", "score": score, "metrics": {} if lost else {"accuracy": score}, "output": "x"}
            known |= {"protocol": {"query_aware": True, "decode": "grow"}, "error": why if lost else None}
            sizes = {"kept_fraction": share, "kept_entries": share * length, "kv_bytes": int(share * length * BYTES)}
            made.append(
                known
                | {**(dict.fromkeys(sizes) if lost else sizes), "prefill_s": 1.0, "spans_kept": {}, "decode_s": None}
            )
    rows = table(made)
    for name, values in more.items():
        rows[name] = rows["sample"].map(lambda sample, values=values: values[int(sample)])
    return rows


def long_and_short():
    """The issue's input: 12 long easy and 12 short hard documents; StreamingLLM reaches no short one at 40%."""
    every, own = [1.0] * 12 + [0.0] * 12, [1.0] * 12 + [None] * 12
    cells = {"full": [1.0] * 12 + [0.5] * 12, "h2o": every, "snapkv": every, "streaming_llm": own}
    return rows_of(cells, [2000] * 12 + [20] * 12)


def three_of_thirty(absent=None):
    """The issue's input: random has 3 of 30 scores, all right; the others are failed rows or (`none`) no rows."""
    cells = {"full": [1.0] * 30, "h2o": [1.0] * 20 + [0.0] * 10, "random": [1.0] * 3 + [absent] * 27}
    return rows_of(cells, [1000] * 30, why="OutOfMemoryError: no memory")


def a_set_failed():
    """The issue's input: three RULER sets of eight; TOVA fails on all of the one that it would get wrong."""
    sets = ["niah"] * 8 + ["vt"] * 8 + ["cwe"] * 8
    wrong = [1.0] * 16 + [0.0] * 8
    cells = {"full": [1.0] * 24, "h2o": wrong, "tova": [1.0] * 16 + [None] * 8}
    return rows_of(cells, [1000] * 24, why="OutOfMemoryError: no memory", stratum=sets)
