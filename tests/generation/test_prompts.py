"""Left padding to few widths."""

import numpy as np
import pytest

from jaxcore.generation import pad_left, prompt_width


def test_widths_are_few_and_near():
    widths = [prompt_width(length, limit=1000) for length in range(1, 1001)]
    assert sorted(set(widths)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000]
    for length, width in enumerate(widths, 1):
        assert length <= width <= max(16, 1.5 * length)
    assert prompt_width(9, limit=12) == 12
    finer = [prompt_width(length, limit=1000, per_doubling=8) for length in range(1, 1001)]
    assert sorted(set(finer))[:11] == [16, 18, 20, 22, 24, 26, 28, 30, 32, 36, 40] and finer[518] == 576
    assert all(length <= width <= max(16, 1.125 * length) for length, width in enumerate(finer, 1))
    with pytest.raises(ValueError, match="a prompt has 13 tokens, but only 12 fit"):
        prompt_width(13, limit=12)


def test_padding_is_on_the_left():
    padded, mask = pad_left([[1, 2, 3], [4]], 4)
    np.testing.assert_array_equal(padded, [[0, 1, 2, 3], [0, 0, 0, 4]])
    np.testing.assert_array_equal(mask, [[0, 1, 1, 1], [0, 0, 0, 1]])
    vectors, mask = pad_left([np.ones((2, 5)), 2 * np.ones((3, 5))], 3)
    assert vectors.shape == (2, 3, 5) and vectors[:, :, 0].tolist() == [[0, 1, 1], [2, 2, 2]]
    for wrong, message in (([[1], []], "prompt 1 has 0 tokens"), ([[1] * 5], "prompt 0 has 5 tokens, expected 1 to 4")):
        with pytest.raises(ValueError, match=message):
            pad_left(wrong, 4)
