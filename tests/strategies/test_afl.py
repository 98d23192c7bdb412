"""AFL's classifier is the ridge regression on the images of all clients."""

import numpy as np
import pytest
from smoke import smoke

from fedbayes.comm.messages import ClientRequest, ClientUpdate
from fedbayes.errors import ConfigError
from strategies.afl import AFL


def test_afl_is_the_ridge_regression_on_pooled_images_whatever_the_partition():
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(40, 5)), rng.integers(3, size=40)
    y = np.eye(3)[labels]
    for cuts in ([40], [1, 25], [13, 14, 30]):
        parts = np.split(np.arange(40), cuts)
        replies = [
            ClientUpdate(p, {"sums": y[i].T @ z[i], "counts": y[i].sum(0), "gram": z[i].T @ z[i]}, len(i), {})
            for p, i in enumerate(parts)
        ]
        strategy = AFL(ridge=0.7, temperature=0.5)
        strategy.aggregate(replies)
        expected = np.linalg.solve(z.T @ z + 0.7 * np.eye(5), z.T @ y).T / 0.5
        np.testing.assert_allclose(strategy.shared["weights"], expected, rtol=1e-10)


def test_clients_send_the_gram_matrix_of_their_features_and_one_that_cannot_be_is_rejected():
    _, client = smoke("method=afl")
    (update,) = client.train([ClientRequest(0, 1, "train", "", client.initial())])
    z = client.inputs.features(client.data.batch([0], "train"))[0][0].double().numpy()
    np.testing.assert_allclose(update.arrays["gram"], z.T @ z, rtol=1e-10)
    assert AFL().rejection_reason(update) is None
    update.arrays["gram"] = update.arrays["gram"] * 0
    assert "squares" in str(AFL().rejection_reason(update))


@pytest.mark.parametrize("setting", ["ridge", "temperature"])
def test_settings_must_be_above_0(setting):
    with pytest.raises(ConfigError, match=rf"method\.strategy\.{setting}"):
        AFL(**{setting: 0})
