"""Several positives per anchor against torch's cross entropy and log-softmax in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcore.distributed import MeshConfig, make_mesh
from jaxcore.losses import info_nce
from jaxcore.losses.multi_positive import multi_positive_info_nce

torch = pytest.importorskip("torch")

VIEWS = np.random.default_rng(0).standard_normal((3, 24, 8)) + 0.3
WEIGHTS = {"sum": (0.5, 2.0), "logsum": (1.0, 0.8)}


def reference(views, combine, weights, temperature):
    """Value and gradient from probabilities, as the equations have them."""
    views = torch.tensor(views, requires_grad=True)
    unit = torch.nn.functional.normalize(views, dim=-1)
    probabilities = [torch.softmax(unit[0] @ unit[v].T / temperature, dim=1).diagonal() for v in (1, 2)]
    if combine == "sum":
        loss = -sum(w * p.log() for w, p in zip(weights, probabilities, strict=True)).mean()
    else:
        loss = -sum(w * p for w, p in zip(weights, probabilities, strict=True)).log().mean()
    loss.backward()
    return loss.item(), views.grad.numpy()


@pytest.mark.parametrize("combine", ["sum", "logsum"])
@pytest.mark.parametrize("devices", [1, 8])
def test_equals_torch(combine, devices):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2)) if devices == 8 else None
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda v: multi_positive_info_nce(v, temperature=0.2, combine=combine, weights=WEIGHTS[combine], mesh=mesh)
        )
    )(jnp.asarray(VIEWS, jnp.float32))
    expected, expected_gradient = reference(VIEWS, combine, WEIGHTS[combine], 0.2)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5 * np.abs(expected_gradient).max())


def test_sum_is_the_sum_of_one_loss_per_positive():
    views = jnp.asarray(VIEWS, jnp.float32)
    expected = sum(info_nce(views[0], views[v], temperature=0.05) for v in (1, 2))
    assert float(multi_positive_info_nce(views, temperature=0.05)) == pytest.approx(float(expected), rel=1e-6)
    two = multi_positive_info_nce(views[:2], temperature=0.05, combine="logsum")
    assert float(two) == pytest.approx(float(info_nce(views[0], views[1], temperature=0.05)), rel=1e-6)


def test_logsum_survives_probabilities_that_underflow():
    """Every positive is the opposite of its anchor: p = exp(-400) is 0 in float32, its logarithm is not."""
    anchors = jnp.eye(4)
    views = jnp.stack([anchors, -anchors, -anchors])
    value, gradient = jax.value_and_grad(
        lambda v: multi_positive_info_nce(v, temperature=0.0025, combine="logsum", weights=(1.0, 0.8))
    )(views)
    assert float(value) == pytest.approx(400 + np.log(3) - np.log(1.8), rel=1e-6)
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"views": VIEWS[:1]}, "one or more positives"),
        ({"views": VIEWS[0]}, r"\[views, batch, dim\]"),
        ({"weights": (1.0,)}, "2 positive numbers"),
        ({"weights": (1.0, 0.0)}, "2 positive numbers"),
        ({"combine": "mean"}, "'sum' or 'logsum'"),
        ({"temperature": 0.0}, "temperature must be positive"),
    ],
)
def test_bad_input_is_named(change, message):
    options = {"views": VIEWS, "temperature": 0.1, **change}
    with pytest.raises(ValueError, match=message):
        multi_positive_info_nce(jnp.asarray(options.pop("views"), jnp.float32), **options)
