"""kvpress behind a pipe: loads a model folder once, then answers one line of JSON for each line of JSON it reads.

Runs in the environment that `setup.sh` makes, where pvcbench is not installed. Requests:

    {"do": "generate", "context": "...", "question": "...", "press": "StreamingLLM", "ratio": 0.5, "new_tokens": 32}
    {"do": "group", "context": "...", "questions": ["...", "..."], "press": null, "ratio": 0, "new_tokens": 32}
    {"do": "prefill", "press": null, "length": 1024, "repeats": 1}
    {"do": "keep", "press": "SnapKV", "ids": [5, 17, 9, ...], "ratio": 0.5, "options": {"window_size": 32}, "seed": 0}
    {"do": "where"}

`press` is the name of a kvpress class without its `Press`, null the uncompressed cache; `keep` also takes a press with
its options, {"press": "AdaKVPress", "options": {"press": "SnapKVPress"}}, and with a seed draws the same in every layer
whatever was drawn before. A request that fails is
answered by {"error": "one line"}. With `--peak PRESS LENGTH` one prefill runs and the peak of resident memory is
printed, in MiB.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as pvcbench does: a waiting worker must not starve the other side
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import kvpress
import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast
from transformers.utils import logging

EAGER = ("ObservedAttention",)  # presses that read attention weights, which SDPA does not return
PACKAGES = ("kvpress", "torch", "transformers", "tokenizers", "numpy")
QUESTION = 64  # the last tokens, which Finch takes for the question
PROBE = "Spaces between words,\n\nnew lines and 1234567890 digits.\n\tTabs too."


def tokenizer_of(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's tokenizer by its file alone; another version's AutoTokenizer may read it differently."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {key: settings[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token") if key in settings}
    template = folder / "chat_template.jinja"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template"),
        clean_up_tokenization_spaces=False,
        **special,
    )
    if tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False)) != PROBE:
        raise SystemExit("the model's tokenizer does not give a text back in this version of transformers")
    return tokenizer


def gathered(module, indices: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The kept keys as they are: takes the place of KeyRerotationPress.rerotate_keys where kept sets are compared."""
    return keys.gather(2, indices[..., None].expand(-1, -1, -1, keys.shape[-1]))


def with_options(named: dict):
    """A press by its class and options; those of presses inside it are written alike."""
    options = {}
    for key, value in named.get("options", {}).items():
        several = isinstance(value, list)
        made = [with_options(one) if isinstance(one, dict) else one for one in (value if several else [value])]
        made = [getattr(kvpress, one)() if isinstance(one, str) and one.endswith("Press") else one for one in made]
        options[key] = made if several else made[0]
    return getattr(kvpress, named["press"])(**options)


class Worker:
    """The model, the tokenizer and kvpress's own pipeline; only the attention implementation changes with the press."""

    def __init__(self, folder: Path, ends: list[int]):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        if ends:
            self.model.generation_config.eos_token_id = ends
        self.pipeline = kvpress.KVPressTextGenerationPipeline(
            model=self.model, tokenizer=tokenizer_of(folder), device="cpu"
        )
        self.whole = None, []  # the uncompressed cache that kept sets were last compared with, behind what it is of

    def press(self, name: str | dict | None, ratio: float, options: dict | None = None):
        """A press, or None for the uncompressed cache, and the attention it needs set in the model."""
        if isinstance(name, dict):
            made = with_options(name)
            try:
                made.compression_ratio = ratio
            except AttributeError:  # its options fix its size
                return made
            return made
        self.model.set_attn_implementation("eager" if name in EAGER else "sdpa")
        if name in ("AdaKV", "ChunkKV", "CriticalKV", "CriticalAdaKV", "KeyRerotation"):  # they wrap another
            return getattr(kvpress, f"{name}Press")(kvpress.SnapKVPress(compression_ratio=ratio))
        if name is None:
            return None
        press = getattr(kvpress, f"{name}Press")(compression_ratio=ratio, **(options or {}))
        if name == "Finch":  # no delimiter among the tokens: the question is the last ones
            press.delimiter_token_id, press.window_size = -1, QUESTION
        return press

    def generate(self, context: str, question: str, press: str | None, ratio: float, new_tokens: int) -> dict:
        """One point of a curve: the answer, the seconds it took, what was kept and a hash of the prompt's tokens."""
        chosen, cache = self.press(press, ratio), DynamicCache()
        started = time.perf_counter()
        said = self.pipeline(context, question=question, press=chosen, max_new_tokens=new_tokens, cache=cache)
        seconds = time.perf_counter() - started
        parts = self.pipeline.preprocess(context, [question], "", sys.maxsize)
        read, asked = parts["context_ids"][0], parts["questions_ids"][0][0]
        whole = torch.cat((read, asked)).to(torch.int64).numpy().tobytes()
        return {
            "answer": said["answer"],
            "seconds": seconds,
            "kept": [layer.keys.shape[2] for layer in cache.layers],
            "context_tokens": len(read),
            "question_tokens": len(asked),
            "prompt_sha256": hashlib.sha256(whole).hexdigest(),
        }

    def group(self, context: str, questions: list[str], press: str | None, ratio: float, new_tokens: int) -> dict:
        """Questions on one context that is compressed once, as kvpress's pipeline groups them."""
        chosen = self.press(press, ratio)
        started = time.perf_counter()
        said = self.pipeline(context, questions=questions, press=chosen, max_new_tokens=new_tokens)
        seconds = time.perf_counter() - started
        parts = self.pipeline.preprocess(context, questions, "", sys.maxsize)
        wholes = [torch.cat((parts["context_ids"][0], asked[0])) for asked in parts["questions_ids"]]
        hashes = [hashlib.sha256(whole.to(torch.int64).numpy().tobytes()).hexdigest() for whole in wholes]
        return {"answers": said["answers"], "seconds": seconds, "prompts_sha256": hashes}

    def prefill(self, press: str | None, length: int, repeats: int = 1, ratio: float = 0.5) -> dict:
        """Seconds of prefills of random tokens, as the pipeline does them: compressed layer by layer, no head."""
        ids = torch.randint(
            5, self.model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(length)
        )
        seconds = []
        for _ in range(repeats):
            chosen, cache = self.press(press, ratio), DynamicCache()
            started = time.perf_counter()
            with torch.inference_mode():
                if chosen is None:
                    self.model.model(input_ids=ids, past_key_values=cache)
                else:
                    with chosen(self.model):
                        self.model.model(input_ids=ids, past_key_values=cache)
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def keep(
        self, press: str | dict, ids: list[int], ratio: float, options: dict | None = None, seed: int | None = None
    ) -> dict:
        """The positions that each layer and head keeps, found by comparing its keys with the whole cache's."""
        kvpress.KeyRerotationPress.rerotate_keys = staticmethod(gathered)  # keys that were turned are no others' again
        eager = (press["press"].removesuffix("Press") if isinstance(press, dict) else press) in EAGER
        known = tuple(ids), eager
        if self.whole[0] != known:
            self.whole = known, self.prefilled(None, ids, eager)
        chosen = self.press(press, ratio, options)
        with self.seeded(seed):
            left = self.prefilled(chosen, ids, eager)
        whole = self.whole[1]
        kept = []
        for number, (full, part) in enumerate(zip(whole, left, strict=True)):
            masked = getattr(self.model.model.layers[number].self_attn, "masked_key_indices", None)
            same = (part.keys[0][:, :, None] == full.keys[0][:, None]).all(-1)  # heads, kept, tokens
            if masked is not None:  # AdaKV masks instead of removing
                same[masked[1], masked[2], masked[2]] = False
            kept.append([head.any(0).nonzero().flatten().tolist() for head in same])
        return {"kept": kept}

    def prefilled(self, chosen, ids: list[int], eager: bool) -> list:
        """The layers of the cache after a prefill under a press; by the same attention, keys are equal to the bit."""
        cache = DynamicCache()
        self.model.set_attn_implementation("eager" if eager else "sdpa")
        with torch.inference_mode(), chosen(self.model) if chosen else nullcontext():
            self.model.model(input_ids=torch.tensor([ids]), past_key_values=cache)
        return cache.layers

    @contextmanager
    def seeded(self, seed: int | None):
        """Seeds torch before each layer by the layer's number, if a seed is given."""

        def before(module, inputs):
            torch.manual_seed(seed + module.layer_idx)

        layers = self.model.model.layers if seed is not None else ()
        hooks = [layer.self_attn.register_forward_pre_hook(before) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def where(self) -> dict:
        """The folder that kvpress lies in."""
        return {"folder": str(Path(kvpress.__file__).parent)}

    def answer(self, request: dict) -> dict:
        """The reply to one request; a failure is a reply too, and the worker goes on."""
        try:
            known = {
                "generate": self.generate,
                "group": self.group,
                "prefill": self.prefill,
                "keep": self.keep,
                "where": self.where,
            }
            return known[request.pop("do")](**request)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def peak_mib(worker: Worker, press: str | None, length: int) -> float:
    """Peak of this process's resident memory during one prefill."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of loading the model
    worker.prefill(press, length)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 2**10


def main() -> None:
    """Loads, says so, and answers until its input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a folder with safetensors and tokenizer.json")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--ends", type=int, nargs="*", default=[], help="token ids that end an answer")
    parser.add_argument("--peak", nargs=2, default=None, metavar=("PRESS", "LENGTH"), help="PRESS may be none")
    options = parser.parse_args()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print goes to stderr; replies alone use the pipe
    logging.disable_progress_bar()  # the last line on stderr is to say what went wrong
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # of the Random press
    started = time.perf_counter()
    worker = Worker(options.model, options.ends)
    if options.peak:
        press, length = options.peak
        print(peak_mib(worker, None if press == "none" else press, int(length)), file=replies, flush=True)
        return
    ready = {"ready": True, "load_s": round(time.perf_counter() - started, 2), "threads": torch.get_num_threads()}
    ready |= {"python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES}}
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(worker.answer(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
