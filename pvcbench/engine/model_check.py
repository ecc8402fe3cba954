"""The check of a freshly loaded model: 32 tokens through the engine must equal the unmodified model."""

import torch
from jaxtyping import Float
from torch import Tensor

from pvcbench.engine.decode import Decoder
from pvcbench.engine.engine import NAME, Engine
from pvcbench.engine.evict import Cell
from pvcbench.engine.turning import unmovable
from pvcbench.errors import NOT_FINITE, UserError
from pvcbench.policy import Method

TOKENS, STEPS, TRIES = 28, 4, 4
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}  # of the logits' range


@torch.inference_mode()
def check(engine: Engine, rotates: bool = False, queries: bool = False) -> None:
    """Raises UserError where the engine's logits differ from the unmodified model's, prompt and decoding alike.

    With `rotates`, also that keys can be moved to other positions, which cache positions need; with `queries`, that
    every layer's queries before rotary embedding can be told.
    """
    ids, theirs = unmodified(engine)
    chunks = {None, None if engine.layout.states else engine.chunk and min(engine.chunk, TOKENS // 3)}
    try:
        ours = [through_engine(engine, ids, chunk) for chunk in chunks]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"this model cannot be measured: {' '.join(str(error).split())[:200]}") from error
    off = max(apart(one, theirs, engine.model.dtype) for one in ours)
    if not off <= TOLERANCE[engine.model.dtype]:
        raise UserError(f"this model cannot be measured: the engine's logits differ by {off:.1e} of their range")
    if engine.layout.states:
        engine.continues = continues(engine, ids, theirs)
    if rotates:
        check_rotation(engine, ids[:, :TOKENS])
    if queries:
        engine.prefill(ids[:, :TOKENS], [Queries()])


class Queries(Method):
    """Asks for queries before rotary embedding and ranks nothing by them."""

    needs_queries = True

    def scores(self, seen):
        return torch.zeros_like(seen.positions, dtype=torch.float32)


def unmodified(engine: Engine):
    """Random tokens and the unmodified model's logits after the last of the prompt and each later one.

    Raises UserError where these are not finite on any tokens that are tried.
    """
    for seed in range(TRIES):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, engine.config.vocab_size, (1, TOKENS + STEPS), generator=generator).to(engine.device)
        engine.model.set_attn_implementation("sdpa" if getattr(engine.model, "_supports_sdpa", True) else "eager")
        try:
            theirs = engine.model(input_ids=ids, use_cache=False).logits[0, TOKENS - 1 :]
        except Exception as error:
            told = " ".join(str(error).split())[:200]
            raise UserError(f"this model cannot be measured: transformers does not run it here ({told})") from error
        finally:
            engine.model.set_attn_implementation(NAME)
        if bool(torch.isfinite(theirs).all()):
            return ids, theirs
    raise UserError(f"this model cannot be measured: {NOT_FINITE}")


def through_engine(engine: Engine, ids, chunk: int | None):
    """Logits of the last prompt token and of each step after it, through an uncompressed cache."""
    asked, engine.chunk = engine.chunk, chunk
    try:
        prefill = engine.prefill(ids[:, :TOKENS], reach=TOKENS + STEPS)
    finally:
        engine.chunk = asked
    if not all(state.tensors() for state in prefill.states.values()):
        raise UserError("this model cannot be measured: its recurrent layers keep their state outside of the cache")
    groups = engine.fork(prefill, [Cell("check", Method(), None, everything=True)], STEPS)
    decoder = Decoder(engine.call, groups)
    steps = [decoder.step(ids[:, number : number + 1]) for number in range(TOKENS, TOKENS + STEPS)]
    return torch.cat([prefill.logits, *steps])


def continues(engine: Engine, ids, theirs) -> bool:
    """Whether the prompt in two pieces and the steps at once give the same logits; else tokens go in one by one."""
    asked, engine.chunk, engine.continues = engine.chunk, TOKENS // 2, True
    try:
        prefill = engine.prefill(ids[:, :TOKENS])
    finally:
        engine.chunk = asked
    groups = engine.fork(prefill, [Cell("check", Method(), None, everything=True)], STEPS)
    ours = torch.cat([prefill.logits, Decoder(engine.call, groups).step(ids[:, TOKENS:])])
    return apart(ours, theirs[[0, -1]], engine.model.dtype) <= TOLERANCE[engine.model.dtype]


def apart(ours: Float[Tensor, "rows vocabulary"], theirs: Float[Tensor, "rows vocabulary"], dtype) -> float:
    """The largest difference of logits, of their range; in sixteen bits that of a row in the middle of all.

    There rounding turns a mixture of experts whose router is undecided, in single rows and by much; what is wrong for
    another reason is so in most rows. `dtype` is the model's: some give out their logits in float32.
    """
    rows = (ours - theirs).abs().amax(-1)
    worst = rows.median() if dtype in (torch.bfloat16, torch.float16) else rows.max()
    return worst.item() / (theirs.max() - theirs.min()).item()


def check_rotation(engine: Engine, ids) -> None:
    """Raises UserError where keys cannot be moved to other positions by rotation alone.

    `ids` are a prompt's, [1, tokens], on which the model's numbers are finite.
    """
    for turns in engine.turns(ids):
        if isinstance(turns, str):
            raise UserError(unmovable(turns))
