"""The points measured by scripts/bench_costs.py, their work in the cost model's terms, and constants fitted to them.

measured = Measured(Path("results/bench/costs.json"), profile_of)
measured.predicted(measured.points[0])  # seconds
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from pvcbench.costs import model as costs
from pvcbench.costs.model import TERMS, Architecture, Profile, Work
from pvcbench.costs.scale_page import pace, spell, table
from pvcbench.errors import UserError
from pvcbench.policy import Shape

STEPS = 8  # decoding steps of one measurement
PEAK = {"copy": "byte copied, measured alone", "matrix_product": "operation of a matrix product, measured alone"}


def every_layer(tokens: int, layers: int) -> Shape:
    """A prompt in a model whose every layer evicts."""
    return Shape(tokens, layers, tuple(range(layers)))


class Measured:
    """A file of measured points; `profile_of(point, shape)` says what the method of a point's prefill observes."""

    def __init__(self, path: Path, profile_of: Callable[[Mapping, Shape], Profile]):
        if not path.is_file():
            raise UserError(f"no measured points at {path}: run scripts/bench_costs.py --out {path.name} first")
        self.data = json.loads(path.read_text(encoding="utf-8"))
        self.profile_of, self.points = profile_of, self.data["points"]
        self.models = {name: Architecture(**sizes) for name, sizes in self.data["shapes"].items()}
        self.element = self.data["element_bytes"]
        self.constants = costs.fit([(self.work(point), point["median"]) for point in self.timed("fit")])

    def timed(self, role: str) -> list[dict]:
        """The points of a role (fit or check) that are times."""
        return [point for point in self.points if point["role"] == role and point["kind"] != "memory"]

    @property
    def about(self) -> str:
        """The machine, in words."""
        machine, threads = self.data["machine"], self.data["threads"]
        if self.data["device"] == "cuda":
            return machine["gpus"][0]
        return f"{machine['processor']}, {threads} thread{'s' * (threads > 1)}"

    def work(self, point: Mapping) -> Work:
        """What a point did, counted."""
        model, tokens = self.models[point["model"]], point["tokens"]
        if point["kind"] == "prefill":
            return costs.prefill(model, self.profile_of(point, every_layer(tokens, model.layers)), self.element)
        if point["kind"] == "fork":
            kept = [int(point["budget"] * tokens)] * model.layers
            return costs.fork(model, kept, [tokens] * model.layers, self.element)
        entries = point["rows"] * model.layers * (tokens + (STEPS + 1) / 2)
        return costs.step(model, entries, point["rows"], self.element)

    def predicted(self, point: Mapping) -> float:
        """Seconds of a point, or the bytes its prefill adds to the weights, by the model."""
        if point["kind"] != "memory":
            return costs.seconds(self.work(point), self.constants)
        model = self.models[point["model"]]
        profile = self.profile_of(point, every_layer(point["tokens"], model.layers))
        scored = point["method"] in ("observed", "window")
        found = costs.memory(model, profile, self.element, point["method"] == "observed", scored)
        return found.peak - found.weights

    def compared(self, role: str) -> str:
        """The points of a role beside what the model says of them, as a table."""
        rows = []
        for point in self.points:
            if point["role"] != role:
                continue
            said = self.predicted(point)
            if point["kind"] == "memory":
                found = point["bytes"]
                values = [f"{value / 2**20:,.0f} MiB" for value in (found, said)]
            else:
                found = point["median"]
                span = f"[{spell(point['least'])}, {spell(point['most'])}]"
                values = [f"{spell(found)} {span}", spell(said)]
            rows.append([point["model"], in_words(point), *values, f"{said / found:.2f}"])
        return table(["model", "what", "measured", "predicted", "ratio"], rows)


def in_words(point: Mapping) -> str:
    """What a point measures."""
    tokens, share = point["tokens"], "" if point["budget"] is None else f" at {point['budget']:.0%}"
    if point["kind"] == "step":
        return f"step, {point['rows']} cache{'s' * (point['rows'] > 1)} of {tokens:,}"
    if point["kind"] == "fork":
        return f"fork{share} of {tokens:,}"
    return f"{'peak memory' if point['kind'] == 'memory' else 'prefill'}, {point['method']}{share}, {tokens:,}"


def constants(measured: Measured, other: str, others: Mapping[str, float]) -> str:
    """The fitted constants as rates, beside another machine's, as a table."""
    rows = [[about, pace(term, measured.constants[term]), pace(term, others[term])] for term, about in TERMS.items()]
    alone = [[about, pace(name, 1 / measured.data["rates"][name]["median"]), ""] for name, about in PEAK.items()]
    source = f"`{measured.data['command']}`, {measured.data['rounds']} round(s) after a warm-up, {measured.about}."
    return f"{source}\n\n{table(['per', measured.about, other], rows + alone)}"
