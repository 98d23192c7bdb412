"""Nearness to keys and mixing of sets, by hand."""

import numpy as np
import torch

from fedbayes.models.prompt_sets import cosine, mixture


def test_cosine_by_hand():
    z = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]])
    keys = torch.tensor([[[1.0, 0.0], [-6.0, -8.0], [0.0, 0.0]]])
    torch.testing.assert_close(cosine(z, keys), torch.tensor([[[0.6, -1.0, 0.0], [0.0, -0.8, 0.0]]]))
    # Each client has its keys.
    z, keys = torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    for c in range(2):
        torch.testing.assert_close(cosine(z, keys)[c], cosine(z[c : c + 1], keys[c : c + 1])[0])


def test_a_mixture_is_the_weighted_sum_and_a_one_hot_weight_chooses():
    rng = np.random.default_rng(0)
    weights, sets = rng.random((2, 4, 3)), rng.standard_normal((2, 3, 2, 5, 6))
    actual = mixture(torch.from_numpy(weights), torch.from_numpy(sets)).numpy()
    np.testing.assert_allclose(actual, np.einsum("cbk,cknld->cbnld", weights, sets), rtol=1e-12)
    chosen = mixture(torch.eye(3, dtype=torch.float64).expand(2, 3, 3), torch.from_numpy(sets)).numpy()
    np.testing.assert_array_equal(chosen, sets)
    everybodys = mixture(torch.from_numpy(weights), torch.from_numpy(sets[:1])).numpy()
    np.testing.assert_allclose(everybodys, np.einsum("cbk,knld->cbnld", weights, sets[0]), rtol=1e-12)
