"""A curve as kvpress runs it, point by point, and what it is to a curve of ours on the same prompts."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from peers.client import Peer, PeerFailed

PRESSES = {"h2o": "ObservedAttention", "streaming_llm": "StreamingLLM", "random": "Random"}
OBSERVED = ("h2o",)  # methods whose press needs eager attention
TARGETS = {"peer_over_ours": 15.0, "peer_over_ours_without_observed": 10.0}
# kvpress compresses the context before it sees the question, and keeps keys where they were
OVERRIDES = ("methods.streaming_llm.positions=original",)


@dataclass
class Side:
    """What one side needed and said: seconds per sample, and how often each method answered right."""

    seconds: list[float] = field(default_factory=list)
    seconds_without_observed: list[float] = field(default_factory=list)
    answers: list[dict] = field(default_factory=list)  # sample, method, budget, kept entries, text, score; seconds


def points(methods: Sequence[str], budgets: Sequence[float]) -> Iterator[tuple[str, float, str | None, float]]:
    """Method, budget, press and compression ratio of every point, the full cache first."""
    yield "full", 1.0, None, 0.0
    for name in methods:
        for budget in budgets:
            yield name, budget, PRESSES[name], 1 - budget


def ask(peer: Peer, task, sample, prompt, wanted: Sequence[tuple], side: Side) -> None:
    """One sample on the peer's side, point by point; raises PeerFailed where it reads other tokens than we do."""
    seconds = {}
    for name, budget, press, ratio in wanted:
        question = f"\n\n{sample.question}"  # what stands between context and question is never compressed
        limits = {"press": press, "ratio": ratio, "new_tokens": sample.max_new_tokens}
        reply = peer.ask("generate", context=sample.context, question=question, **limits)
        if (reply["prompt_sha256"], reply["context_tokens"]) != (prompt.sha256, prompt.context_tokens):
            raise PeerFailed(f"the peer read sample {sample.id} as other tokens than we do")
        seconds[name, budget] = reply["seconds"]
        said = {"text": reply["answer"], "score": next(iter(task.score(sample, reply["answer"]).values()))}
        said |= {"kept": statistics.mean(reply["kept"]), "seconds": reply["seconds"]}
        side.answers.append({"sample": sample.id, "method": name, "budget": budget, **said})
    side.seconds.append(sum(seconds.values()))
    side.seconds_without_observed.append(sum(spent for (name, _), spent in seconds.items() if name not in OBSERVED))


def note(side: Side, rows: Sequence[Mapping]) -> None:
    """Our rows of one sample, in the same form."""
    for row in rows:
        budget = 1.0 if row["reference"] else float(row["budget"])
        said = {"text": row["output"], "score": row["score"], "kept": row["kept_entries"]}
        side.answers.append({"sample": row["sample"], "method": row["method"], "budget": budget, **said})


def report(ours: Side, theirs: Side, methods: Sequence[str], whole: bool, tokens_of) -> dict:
    """Ratios, seconds, targets and sanity counts; `whole` says whether it is the curve that the targets are for.

    `tokens_of(text)` counts tokens. Samples that the peer did not finish are left out.
    """
    result = {}
    for key, name in (("peer_over_ours", "seconds"), ("peer_over_ours_without_observed", "seconds_without_observed")):
        pairs = list(zip(getattr(ours, name), getattr(theirs, name), strict=False))
        if key != "peer_over_ours" and not set(methods) - set(OBSERVED):
            continue
        ratios = [peer / own for own, peer in pairs]
        middle = statistics.median(ratios)
        result |= {key: round(middle, 2), f"{key}_range": [round(min(ratios), 2), round(max(ratios), 2)]}
        met = middle >= TARGETS[key] if whole else None
        result[f"{key}_target"] = {"at_least": TARGETS[key], "met": met}
        result[f"ours_{name}"] = spread([own for own, _ in pairs])
        result[f"peer_{name}"] = spread([peer for _, peer in pairs])
    alone = {}
    for row in theirs.answers:
        alone.setdefault(row["method"], []).append(row["seconds"])
    result["peer_point_s"] = {method: round(statistics.median(values), 3) for method, values in alone.items()}
    return result | sanity(ours, theirs, methods, tokens_of)


def spread(values: Sequence[float]) -> dict:
    """Seconds of each sample, their median, the smallest and the largest."""
    middle = {"median": round(statistics.median(values), 3)}
    return {"each": [round(value, 3) for value in values], **middle} | {
        "smallest": round(min(values), 3),
        "largest": round(max(values), 3),
    }


def sanity(ours: Side, theirs: Side, methods: Sequence[str], tokens_of) -> dict:
    """Whether both sides did the same work: right answers and equal texts by method, tokens said, entries kept."""
    mine = {(row["sample"], row["method"], row["budget"]): row for row in ours.answers}
    pairs = [(mine[row["sample"], row["method"], row["budget"]], row) for row in theirs.answers]
    right = {}
    for method in ("full", *methods):
        own = [pair for pair in pairs if pair[0]["method"] == method]
        right[method] = {
            "ours": sum(one["score"] == 1 for one, _ in own),
            "peer": sum(other["score"] == 1 for _, other in own),
            "same_text": sum(one["text"].strip() == other["text"].strip() for one, other in own),
            "of": len(own),
        }
    full = right["full"]
    return {
        "answers": right,
        "full_caches_agree": 2 * full["same_text"] > full["of"],
        "answer_tokens": {
            "ours": sum(tokens_of(one["text"]) for one, _ in pairs),
            "peer": sum(tokens_of(other["text"]) for _, other in pairs),
        },
        "kept_entries_difference": max(abs(one["kept"] - other["kept"]) for one, other in pairs),
    }
