"""What decoding a curve by drafts could save at best, against stepping all cells together.

    python scripts/bench_decode_drafts.py --tokens 1024 --samples 2 --drafts 4 8 12

The cells of a needle curve often begin with the same words. By drafts the full cache would say its first words alone,
every other cell would read them in one pass, keep what it would have said itself, and step on from there. Each of the
three parts is run and timed on the real caches: the full cache alone (`lead_s`), the pass (`pass_s`), and steps for as
long as a cell has words left (`rest_s`). Nothing is charged for cutting caches back, for masks, or for rows that stand
at different positions, so `best_over_plain` is a lower bound of the decoding time by drafts over that of today.
`agreed_over_plain` is the same bound over the drafted words alone, as if every cell agreed with all of them.

Seconds are those of the processor, in one run, since a machine may be shared. `rows_that_differ` counts the rows whose
pass chose another word than their steps did before the first that the draft gets wrong: a near tie. The last line is
one JSON document.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from pvcbench.config import building, compose, processors
from pvcbench.costs import bench_document
from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import Engine
from pvcbench.errors import UserError
from pvcbench.evaluation.cells import points
from pvcbench.evaluation.row import Protocol
from pvcbench.evaluation.shared_prefill import draw_of

BUDGETS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75]
METHODS = ["h2o", "streaming_llm", "random"]


def options_of(arguments=None) -> argparse.Namespace:
    """What can be asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", default="smollm2", help="a name of conf/model (default: smollm2)")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a prompt (default: 1024)")
    parser.add_argument("--samples", type=int, default=2, help="samples, after one that warms up (default: 2)")
    parser.add_argument("--drafts", type=int, nargs="+", default=[4, 8, 12], help="lengths of a draft to try")
    parser.add_argument("--methods", nargs="+", default=METHODS, help=f"methods (default: {' '.join(METHODS)})")
    parser.add_argument("--max-new-tokens", type=int, default=32, help="tokens of the longest answer (default: 32)")
    parser.add_argument("--endless", action="store_true", help="go on after the token that ends an answer")
    parser.add_argument("--threads", type=int, default=None, help="threads (default: all cores)")
    parser.add_argument("--out", type=Path, help="write the JSON document here as well")
    return parser.parse_args(arguments)


def common(one: list[int], other: list[int]) -> int:
    """How many tokens two answers have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Curve:
    """A model, its needle prompts and the cells of a curve."""

    def __init__(self, options: argparse.Namespace):
        asked = [f"task.lengths=[{options.tokens}]", "task.repeats=100", f"method=[{','.join(options.methods)}]"]
        config = compose.composed([f"model={options.model}", *asked])
        self.loaded = building.build(config.model, "the model", device="cpu", dtype=None)
        self.task = building.build(config.task, "the task")
        self.task.prepare(self.loaded.prompter())
        self.points = tuple(points(building.build_methods(config.methods), BUDGETS, "grow"))
        self.engine, self.most = Engine(self.loaded.model, self.loaded.attention), options.max_new_tokens
        self.ends = () if options.endless else tuple(self.loaded.ends)

    def read(self, index: int) -> None:
        """Prefills a sample's prompt for all cells."""
        sample = self.task.sample(0, index)
        ids = torch.tensor([self.task.encode(sample).ids])
        shape, protocol = self.engine.shape(ids.shape[1]), Protocol(True, False, "grow", 0)
        self.cells = [protocol.cell(point, shape) for point in self.points]
        methods = [cell.method for cell in self.cells if not cell.everything]
        self.prefill = self.engine.prefill(ids, methods, draws=torch.tensor([draw_of(0, sample.id)]))

    def plain(self) -> tuple[dict, float, list[float]]:
        """The answers of all cells, the end token included, the seconds of all steps, and of each."""
        groups = self.engine.fork(self.prefill, self.cells, self.most)
        spent, call = [], self.engine.call

        def timed(*arguments):
            started = time.process_time()
            logits = call(*arguments)
            spent.append(time.process_time() - started)
            return logits

        decoder, started = Decoder(timed, groups), time.process_time()
        answers = decoder.greedy(feed=None, new_tokens=self.most, ends=self.ends)
        seconds = time.process_time() - started
        cells = [cell for group in groups for cell in group.cells]
        pairs = zip(cells, answers, strict=True)
        ended = {cell: said + list(self.ends[:1]) * (len(said) < self.most) for cell, [said] in pairs}
        return ended, seconds, spent

    def lead(self, draft: list[int]) -> float:
        """Seconds of the full cache's own steps that give the words of a draft after its first."""
        decoder = Decoder(self.engine.call, self.engine.fork(self.prefill, self.cells[:1], self.most))
        started = time.process_time()
        for token in draft[:-1]:
            decoder.step(torch.tensor([[token]])).argmax(-1)
        return time.process_time() - started

    def check(self, draft: list[int]) -> tuple[dict, float]:
        """How many words of a draft each other cell would have said, from one pass, and the seconds of the pass."""
        groups = self.engine.fork(self.prefill, self.cells[1:], self.most)
        decoder = Decoder(self.engine.call, groups)
        first = decoder.spread([group.prefill.logits for group in groups]).argmax(-1)
        started = time.process_time()
        logits = self.engine.call(torch.tensor([draft[:-1]]).expand(decoder.rows, -1), decoder.cache, len(draft) - 1)
        chosen = torch.cat((first[:, None], logits.argmax(-1)), 1).tolist()
        spent = time.process_time() - started
        cells = [cell for group in groups for cell in group.cells]
        return {cell: common(said, draft) for cell, said in zip(cells, chosen, strict=True)}, spent

    def rest(self, left: dict) -> float:
        """Seconds of steps for as long as a cell of a group has words left."""
        groups = self.engine.fork(self.prefill, [cell for cell, steps in left.items() if steps > 0], self.most)
        decoder, started = Decoder(self.engine.call, groups), time.process_time()
        for step in range(max(left.values())):
            going = [group for group in groups if any(left[cell] > step for cell in group.cells)]
            if len(going) < len(decoder.cache.groups):
                decoder.cache.use(going)
            fed = torch.zeros(decoder.cache.parts[-1].stop, 1, dtype=torch.int64)
            decoder.step(fed).argmax(-1)
        return time.process_time() - started


def by_draft(curve: Curve, answers: dict, plain: float, steps: list[float], words: int) -> dict:
    """The parts of decoding one sample by a draft of so many words, and both bounds."""
    draft = answers[curve.cells[0]][:words]
    agreed, passed = curve.check(draft)
    led = curve.lead(draft)
    fed = {cell: min(agreed.get(cell, len(draft)), len(draft) - 1) for cell in answers}  # of the draft, in the cache
    rest = curve.rest({cell: max(0, len(said) - 1 - fed[cell]) for cell, said in answers.items()})
    differ = sum(common(answers[cell], draft) != found for cell, found in agreed.items())
    result = {"lead_s": led, "pass_s": passed, "rest_s": rest, "agreed_words": statistics.fmean(agreed.values())}
    result |= {"best_over_plain": (led + passed + rest) / plain, "rows_that_differ": differ}
    return result | {"agreed_over_plain": (led + passed) / sum(steps[: len(draft) - 1])}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict:
    """Medians over samples, for each length of a draft."""
    if min(options.drafts) < 2 or max(options.drafts) > options.max_new_tokens:
        raise UserError("--drafts are at least 2 words and no more than --max-new-tokens")
    torch.set_num_threads(processors.threads_of(options.threads))
    curve, found, plains = Curve(options), {words: [] for words in options.drafts}, []
    for index in range(options.samples + 1):
        curve.read(index)
        answers, plain, steps = curve.plain()
        if index == 0:
            by_draft(curve, answers, plain, steps, 2)
            continue
        plains.append(plain)
        for words, parts in found.items():
            parts.append(by_draft(curve, answers, plain, steps, words))
            ratio = parts[-1]["best_over_plain"]
            print(f"sample {index}: {words} words, {ratio:.2f} of {plain:.1f} s", file=sys.stderr)
    result = {"model": options.model, "tokens": options.tokens, "samples": options.samples}
    result |= {"cells": len(curve.cells), "max_new_tokens": options.max_new_tokens, "endless": options.endless}
    result |= {"threads": torch.get_num_threads(), "plain_s": round(statistics.median(plains), 3), "drafts": []}
    for words, parts in found.items():
        names = [name for name in parts[0] if name != "rows_that_differ"]
        line = {name: round(statistics.median(part[name] for part in parts), 3) for name in names}
        differ = sum(part["rows_that_differ"] for part in parts)
        result["drafts"].append({"words": words, **line, "rows_that_differ": differ})
    return result


def main() -> None:
    """Measures and prints; 2 for a user's error."""
    bench_document.measured(measure, options_of())


if __name__ == "__main__":
    main()
