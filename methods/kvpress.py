"""Any press of an installed kvpress (NVIDIA/kvpress), unchanged, under the harness of pvcbench.

A press that ranks entries gives its scores to the shared evictor. Any other press runs its own hook on each layer, and
what it keeps is kept. Which press it is, with which options, are settings; presses of one's own are named by module.
"""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field, replace

from methods.kvpress_compat import facts, installed, made
from methods.kvpress_compat.layer import Layer
from methods.kvpress_compat.layer import kept as kept_by_hook
from methods.kvpress_compat.layer import scores as scores_of
from methods.kvpress_compat.prepared import READY, rotary_of
from pvcbench.policy import Method, Observation, OutOfReach, UserError, torch

MISSING = "???"  # where the YAML leaves the press to the user
ALL_ROWS = 2**40
MOST_BYTES = 4 * 2**30  # of the attention weights of one layer and sample, for presses that read all of them
STEP = 0.01  # of the prompt: what a press may keep beyond the budget, since some sizes come in steps


@dataclass(frozen=True)
class KVPress(Method):
    """A `press` by name, its `options`, and the `path` of kvpress where it is not installed."""

    press: str = MISSING
    options: Mapping | tuple = ()
    path: InitVar[str | None] = None
    ratio: float | None = None  # what the press is told to drop, settled by the budget
    version: str = field(init=False)
    code: str = field(init=False)  # the hash of kvpress' modules that the press needs
    own: tuple[type, ...] = field(init=False)  # classes that are not kvpress', whose code is in the id by themselves
    decodes = ("grow",)
    protocols = ("generate", "continuation")
    needs_module = True
    needs_hidden = True
    needs_rows = property(lambda self: ALL_ROWS if self.facts.attends else 0)
    ragged_batch = property(lambda self: not self.facts.by_scores)
    own_budget = property(lambda self: "own size" if self.facts.own_size else None)
    facts = property(lambda self: facts.of(self.press, self.options))

    def __post_init__(self, path):
        installed.package(path)
        if self.press in (MISSING, None, ""):
            known = ", ".join(installed.presses())
            raise UserError(f"kvpress: say which press by methods.kvpress.press=NAME, one of {known}")
        object.__setattr__(self, "options", made.frozen(self.options or ()))
        if not self.facts.own_size and made.names_ratio(self.options):
            raise UserError(f"{self.press}: the budget says how much to drop, so leave compression_ratio out")
        kinds = [type(one) for one in made.inside(made.press(self.press, self.options))]
        object.__setattr__(self, "version", installed.version())
        object.__setattr__(self, "code", installed.code_of(kinds))
        own = (kind for kind in dict.fromkeys(kinds) if kind.__module__.partition(".")[0] != installed.NAME)
        object.__setattr__(self, "own", tuple(own))

    def resolve(self, budget, shape):
        method = self
        if budget is not None and not self.facts.own_size:
            method = replace(self, ratio=ratio_of(budget, shape.tokens))
        if not self.facts.prepares and shape.tokens <= facts.TRIED:
            asked = self.press, self.options, method.ratio, shape.tokens, shape.layers
            reason = facts.tried(*asked, self.facts.by_scores, self.facts.attends)
            if reason is not None:
                raise OutOfReach(f"{self.press} cannot compress {shape.tokens} tokens: {reason}")
        return method

    def scores(self, seen: Observation):
        given = seen.module()
        press = READY.press(self.press, self.options, given.model if self.facts.prepares else None)
        facts.set_ratio(press, self.ratio)
        run = scores_of if self.facts.by_scores else kept_by_hook
        found = [run(press, self._layer(seen, given, row)) for row in range(len(seen.keys))]
        return torch.cat([one if self.facts.by_scores else one.float() for one in found])

    def _layer(self, seen, given, row) -> Layer:
        """One sample's layer as the press is handed it."""
        part = slice(row, row + 1)
        tables, place = given.tables, seen.keys.device
        if tables is not None:
            tables = tuple((table[part] if len(table) > 1 else table).to(place) for table in tables)
        kv = seen.hidden[part].to(place), seen.keys[part], seen.values[part]
        seed = (int(seen.draws[row]) * 1_000_003 + seen.layer) % 2**63
        return Layer(given.attention, *kv, tables, rotary_of(given.model), self._attentions(seen, part), seed)

    def _attentions(self, seen, part):
        """The attention weights of all rows of one sample, where the press reads them."""
        if not self.facts.attends:
            return None
        _, heads, rows, _ = seen.rows.query.shape
        if heads * rows * rows * 4 > MOST_BYTES:
            size = heads * rows * rows * 4 / 2**30
            raise OutOfReach(f"{self.press} reads all attention weights of a layer at once, {size:.0f} GiB here")
        whole = seen.keys.new_zeros(1, heads, rows, rows)
        for first, last, weights in seen.rows.blocks():
            whole[:, :, first:last, : weights.shape[-1]] = weights[part]
        return whole

    def plan(self, scores, budget, shape):
        if self.facts.by_scores:
            return super().plan(scores, budget, shape)
        counts = [layer.gt(0).sum(-1) for layer in scores]
        most = torch.stack([own.double().mean(1).cpu() for own in counts]).mean(0).max().item()
        if budget is not None and most > min(budget, shape.tokens) + STEP * shape.tokens:
            raise OutOfReach(f"{self.press} keeps {most:.1f} entries of {shape.tokens} where {budget} were asked for")
        return counts


def ratio_of(budget: int, tokens: int) -> float:
    """The share that a press must drop to keep so many entries, by its own rounding: int(tokens * (1 - ratio))."""
    for nudge in (0, 1e-6, 1e-3, 0.5):
        ratio = max(0.0, 1 - (budget + nudge) / tokens)
        if int(tokens * (1 - ratio)) == budget:
            return ratio
    raise OutOfReach(f"no compression ratio leaves {budget} of {tokens} entries")
