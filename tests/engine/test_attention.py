"""The attention primitive against plain softmax and SDPA, over odd sizes; rotation and windows against their words."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pvcbench.engine.attention import (
    attention_mass,
    observed_attention,
    prompt_attention,
    slot_attention,
    visible_slots,
    windowed_attention,
)
from pvcbench.engine.rotary import rotate
from tiny import largest

# Against float64: 1e-12 leaves room for sums of a few hundred terms; a float32 product of rounded inputs is off by
# 1e-7 of numbers up to ten; bfloat16 keeps 8 bits of a logit (2^-9 of up to 10: 2%), and so of a weight and an output.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2}


def tensors(seed, batch, kv_heads, groups, queries, keys, dtype, dim=8):
    """Random query, key and value."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, kv_heads * groups, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim + 4)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def softmax(query, key, allowed, scale):
    """Plain softmax attention weights in float64; allowed is [batch or 1, kv_heads or 1, queries, keys]."""
    groups = query.shape[1] // key.shape[1]
    logits = query.double() @ key.double().repeat_interleave(groups, 1).mT * scale
    allowed = allowed.expand(len(query), key.shape[1], -1, -1).repeat_interleave(groups, 1)
    return logits.masked_fill(~allowed, float("-inf")).softmax(-1)


def causal(queries, keys):
    """Which keys the last rows see."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]


sizes = {
    "seed": st.integers(0, 2**20),
    "batch": st.integers(1, 3),
    "kv_heads": st.integers(1, 3),
    "groups": st.integers(1, 4),
    "queries": st.integers(1, 150),  # more than two blocks of 64 rows
    "before": st.integers(0, 40),
    "sets": st.integers(1, 3),
    "dtype": st.sampled_from(list(TOLERANCE)),
}
quick = settings(max_examples=40, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize("backend", ["blocked", "reference"])
@quick
@given(**sizes, option=st.sampled_from(["causal", "visible", "window"]), scale=st.sampled_from([None, 0.2]))
def test_observed_attention_equals_plain_softmax(
    backend, seed, batch, kv_heads, groups, queries, before, sets, dtype, option, scale
):
    """Output and mass of every backend equal softmax in float64, under every kind of mask."""
    keys = queries + before
    query, key, value = tensors(seed, batch, kv_heads, groups, queries, keys, dtype)
    weights = torch.rand(sets, queries, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    allowed, options = causal(queries, keys), {}
    if option == "visible":
        allowed = torch.rand(batch, kv_heads, queries, keys, generator=torch.Generator().manual_seed(seed)) < 0.5
        allowed[..., 0] = True  # every row sees something
        options = {"visible": allowed}
    if option == "window":
        positions = _gappy(seed, batch, keys)
        rows = positions[:, before:, None]
        allowed = ((positions[:, None] <= rows) & (positions[:, None] > rows - 17))[:, None]
        options = {"window": (17, positions)}
    attention = softmax(query, key, allowed, 8**-0.5 if scale is None else scale)
    output, mass = observed_attention(query, key, value, weights, scale=scale, backend=backend, **options)
    tolerance = TOLERANCE[dtype]
    expected = attention @ value.double().repeat_interleave(groups, 1)
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    assert mass.shape == (sets, batch, kv_heads * groups, keys)
    assert mass.dtype in (torch.float32, torch.float64)  # never summed in bfloat16
    total = torch.einsum("wq,bhqk->wbhk", weights, attention)
    torch.testing.assert_close(mass.double(), total, rtol=tolerance, atol=tolerance)


def _gappy(seed, batch, keys):
    """Increasing positions with gaps, others in each row, as a pruned layer has them."""
    steps = torch.randint(1, 4, (batch, keys), generator=torch.Generator().manual_seed(seed + 1))
    return steps.cumsum(1) - 1


@quick
@given(**sizes)
def test_mass_sums_to_the_row_weights(seed, batch, kv_heads, groups, queries, before, sets, dtype):
    """Each row hands out exactly its weight, and the primitive without values says the same as with them."""
    query, key, value = tensors(seed, batch, kv_heads, groups, queries, queries + before, dtype)
    weights = torch.rand(sets, queries, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    mass = attention_mass(query, key, weights)
    total = weights.sum(1)[:, None, None].expand(mass.shape[:-1])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5  # a softmax in float32 sums to 1 within 1e-7 a row
    torch.testing.assert_close(mass.double().sum(-1), total, rtol=tolerance, atol=tolerance)
    with_values = observed_attention(query, key, value, weights)[1]
    assert torch.equal(mass, with_values)


def test_one_set_of_weights_needs_no_leading_dimension():
    """Weights of shape [queries] give mass of shape [batch, heads, keys]."""
    query, key, _ = tensors(0, 2, 2, 3, 5, 9, torch.float64)
    mass = attention_mass(query, key, torch.ones(5))
    assert mass.shape == (2, 6, 9)
    assert torch.equal(mass, attention_mass(query, key, torch.ones(1, 5))[0])


def test_unknown_backend_lists_the_known_ones():
    """A typo is an error that names the options."""
    query, key, _ = tensors(0, 1, 1, 1, 2, 2, torch.float32)
    with pytest.raises(ValueError, match="blocked, reference"):
        attention_mass(query, key, torch.ones(2), backend="eager")


@quick
@given(**{name: sizes[name] for name in ("seed", "batch", "kv_heads", "groups", "queries", "before")})
def test_sdpa_and_blocked_agree(seed, batch, kv_heads, groups, queries, before):
    """The plain pass and the observing pass give one output, whatever rows of the context are asked."""
    query, key, value = tensors(seed, batch, kv_heads, groups, queries, queries + before, torch.float64)
    plain = prompt_attention(query, key, value, 0.3)
    output, _ = observed_attention(query, key, value, torch.ones(queries), scale=0.3)
    torch.testing.assert_close(output, plain, rtol=1e-12, atol=1e-12)  # float64 sums of up to 190 terms
    expected = softmax(query, key, causal(queries, queries + before), 0.3) @ value.repeat_interleave(groups, 1)
    torch.testing.assert_close(plain, expected, rtol=1e-12, atol=1e-12)


@quick
@given(
    **{name: sizes[name] for name in ("seed", "batch", "kv_heads", "groups", "queries", "before")},
    window=st.integers(1, 60),
    rows=st.integers(1, 64),
)
def test_windowed_attention_equals_a_dense_mask(seed, batch, kv_heads, groups, queries, before, window, rows):
    """A sliding window is measured by positions, which have gaps after pruning, in blocks of any size."""
    query, key, value = tensors(seed, batch, kv_heads, groups, queries, queries + before, torch.float64)
    positions = _gappy(seed, batch, queries + before)
    own = positions[:, before:, None]
    allowed = ((positions[:, None] <= own) & (positions[:, None] > own - window))[:, None]
    expected = softmax(query, key, allowed, 0.3) @ value.repeat_interleave(groups, 1)
    output = windowed_attention(query, key, value, 0.3, window, positions, rows)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)  # float64 sums of up to 190 terms


@quick
@given(**{name: sizes[name] for name in ("seed", "batch", "kv_heads", "groups")}, queries=st.integers(1, 9))
def test_slots_in_any_order_attend_alike(seed, batch, kv_heads, groups, queries):
    """Shuffled slots, empty ones among them, attend as the entries in order do."""
    keys, empty, window = 30, 7, 12
    query, key, value = tensors(seed, batch, kv_heads, groups, queries, keys, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(keys, generator=generator) for _ in range(batch * kv_heads)])
    order = order.view(batch, kv_heads, keys)
    dead = torch.rand(batch, kv_heads, keys, generator=generator).argsort(-1) < empty
    dead[..., keys - queries :] = False  # a row always sees itself
    shuffled = [part.gather(2, order[..., None].expand(-1, -1, -1, part.shape[-1])) for part in (key, value)]
    rows = torch.arange(keys - queries, keys).expand(batch, -1)
    visible = visible_slots(order.masked_fill(dead.gather(-1, order), -1), rows, window)
    columns = torch.arange(keys)
    allowed = (columns <= rows[..., None]) & (columns > rows[..., None] - window)
    allowed = allowed[:, None] & ~dead[:, :, None]
    expected = softmax(query, key, allowed, 0.3) @ value.repeat_interleave(groups, 1)
    torch.testing.assert_close(slot_attention(query, *shuffled, 0.3, visible), expected, rtol=1e-12, atol=1e-12)
    mass = attention_mass(query, shuffled[0], torch.ones(queries), scale=0.3, visible=visible)
    total = softmax(query, key, allowed, 0.3).sum(2)
    back = order.repeat_interleave(groups, 1)
    torch.testing.assert_close(mass, total.gather(-1, back), rtol=1e-12, atol=1e-12)


def _rope(vectors, places, frequencies, scaling=1.0):
    """RoPE by complex numbers: pairs (i, i + width / 2) turn by place * frequency."""
    width = 2 * len(frequencies)
    pairs = torch.complex(vectors[..., : width // 2], vectors[..., width // 2 : width])
    pairs = pairs * torch.polar(torch.full_like(frequencies, scaling), frequencies * places)
    return torch.cat((pairs.real, pairs.imag, vectors[..., width:]), -1)


@pytest.mark.parametrize("width", [16, 8])
@pytest.mark.parametrize("scaling", [1.0, 1.1386])
@pytest.mark.parametrize("shift", [0, 1, 9, 31, 32, 100])
def test_rotate_equals_rope_at_the_shifted_place(width, scaling, shift):
    """Keys after RoPE at place p, moved on by a shift, equal RoPE at p + shift, past the end of the table too."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(32, dtype=torch.float64)[:, None] * frequencies.repeat(2)
    table = (angles.cos()[None] * scaling, angles.sin()[None] * scaling)  # YaRN scales its tables
    key = torch.randn(2, 3, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(shift))
    before, after = (_rope(key, place, frequencies, scaling) for place in (3, 3 + shift))
    torch.testing.assert_close(rotate(before, shift, table), after, rtol=1e-12, atol=1e-12)  # float64 cos and sin


def test_rotate_takes_the_table_of_a_batch():
    """A model hands out one table per row of a batch; rows are alike."""
    frequencies = 10000.0 ** (-torch.arange(0, 8, 2, dtype=torch.float64) / 8)
    angles = torch.arange(16, dtype=torch.float64)[:, None] * frequencies.repeat(2)
    table = (angles.cos()[None], angles.sin()[None])
    key = torch.randn(2, 1, 3, 8, dtype=torch.float64)
    assert torch.equal(rotate(key, 5, table), rotate(key, 5, tuple(part.expand(2, -1, -1) for part in table)))


def test_blocked_memory_is_linear():
    """The largest tensor of the observing pass doubles, not quadruples, when the context does."""

    def run(tokens, backend):
        query, key, value = tensors(0, 1, 2, 2, tokens, tokens, torch.float32)
        return largest(lambda: observed_attention(query, key, value, torch.ones(tokens), backend=backend))

    assert run(2048, "blocked") / run(1024, "blocked") < 2.6  # 2 where it is linear, 4 where a matrix is formed
    assert run(512, "reference") / run(256, "reference") > 3.5  # the measure does see a matrix


def test_scores_of_a_masked_sdpa():
    """The test's own softmax equals SDPA under the same mask: what the tests above are held against is right."""
    query, key, value = tensors(1, 2, 2, 2, 7, 12, torch.float64)
    mask = causal(7, 12)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True)
    mine = softmax(query, key, mask, 0.3) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)  # float64 sums of 12 terms
