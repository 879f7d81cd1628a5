"""attend_grouped against a float64 loop over rows, heads and queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.models.grouped_attention import Source, attend_grouped

ROWS, TIME, HEADS, GROUPS, SIZE = 4, 3, 6, 2, 5


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def keys_and_values(rng, rows: int, slots: int):
    return normal(rng, rows, GROUPS, slots, SIZE), normal(rng, rows, GROUPS, slots, SIZE)


def reference(queries, slots, mask):
    """`slots[row]`: keys and values (groups, source, size) of that row, whatever they came from."""
    result = np.zeros(queries.shape)
    for row, time, head in np.ndindex(ROWS, TIME, HEADS):
        keys, values = (np.asarray(array[head // (HEADS // GROUPS)], np.float64) for array in slots[row])
        allowed = np.flatnonzero(mask[row, 0, time])
        logits = keys[allowed] @ queries[row, time, head].astype(np.float64) / np.sqrt(SIZE)
        weights = np.exp(logits - logits.max())
        result[row, time, head] = weights @ values[allowed] / weights.sum()
    return result


@pytest.mark.parametrize("start", (None, 0, 2), ids=str)
@pytest.mark.parametrize("prefixes", ((), (1,), (1, 2)), ids=str)
def test_against_float64(prefixes, start):
    """Prefixes of 1 and 2 rows for 4 rows of queries; own tokens behind all sources, or in slots of the last."""
    rng = np.random.default_rng(0)
    queries, (keys, values) = normal(rng, ROWS, TIME, HEADS, SIZE), keys_and_values(rng, ROWS, TIME)
    sources = [keys_and_values(rng, rows, 4 + rows) for rows in prefixes]
    if start is not None:
        sources.append(keys_and_values(rng, ROWS, 7))
    joined = []
    for row in range(ROWS):
        parts = [[array[row * len(array) // ROWS] for array in source] for source in sources]
        own = [keys[row], values[row]]
        if start is None:
            parts.append(own)
        else:
            parts[-1] = [
                np.concatenate([old[:, :start], new, old[:, start + TIME :]], 1)
                for old, new in zip(parts[-1], own, strict=True)
            ]
        joined.append([np.concatenate(arrays, 1) for arrays in zip(*parts, strict=True)])
    mask = rng.random((ROWS, 1, TIME, joined[0][0].shape[1])) < 0.6
    mask[..., -1] = True

    @jax.jit
    def attended(queries, keys, values, sources, start):
        return attend_grouped(
            queries, keys, values, jnp.asarray(mask), sources=[Source(*s) for s in sources], start=start
        )

    got = attended(queries, keys, values, sources, start)
    np.testing.assert_allclose(got, reference(queries, joined, mask), atol=1e-5)


def test_fused_and_explicit_agree():
    rng = np.random.default_rng(1)
    queries, (keys, values) = normal(rng, ROWS, TIME, HEADS, SIZE), keys_and_values(rng, ROWS, TIME)
    mask = np.tril(np.ones((TIME, TIME), bool))[None, None].repeat(ROWS, 0)
    explicit, fused = (
        attend_grouped(queries, keys, values, jnp.asarray(mask), implementation=kind) for kind in ("explicit", "fused")
    )
    np.testing.assert_allclose(fused, explicit, atol=1e-5)


def test_wrong_choices_are_refused():
    rng = np.random.default_rng(2)
    given = (
        normal(rng, ROWS, TIME, HEADS, SIZE),
        *keys_and_values(rng, ROWS, TIME),
        np.ones((ROWS, 1, TIME, TIME), bool),
    )
    with pytest.raises(ValueError, match="unknown attention implementation 'flash'"):
        attend_grouped(*given, implementation="flash")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fused attention has no weight dropout"):
        attend_grouped(*given, implementation="fused", dropout_rate=0.1, dropout_key=jax.random.key(0))
