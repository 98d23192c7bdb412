"""Private prediction of a finished run: the classes of the plain quantised model, and refusals by name."""

import numpy as np
import pytest
from smoke import smoke

import fedbayes
from fedbayes.data.sources.styled_digits import styled_digits
from fedbayes.errors import ConfigError
from fedbayes.secure.prediction import FRACTION, QuantisedLinear


def _run(directory, *overrides):
    fedbayes.simulate(["experiment=smoke", *overrides, f"run_dir={directory}/run"])
    return fedbayes.load(directory / "run")


@pytest.mark.parametrize("method", ["fedavg_head", "fedncm"])
def test_labels_are_those_of_the_quantised_model(method, tmp_path):
    run, images = _run(tmp_path, f"method={method}"), styled_digits(16).images[:60]
    client = run.clients.client
    for partition in (None, 1):
        private, clear = run.predict(images, partition, private=True), run.predict(images, partition)
        linear = client.linear_scores(client.inputs.of_images(images, partition), run.clients.parameters(partition))
        features = linear.features.double().numpy()
        whole = QuantisedLinear.of(linear.weights.double().numpy(), linear.bias.double().numpy()).scores(features)
        assert private.labels == [clear.classes[i] for i in whole.argmax(1)]
        scores = whole / 4.0**FRACTION
        probabilities = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(
            probabilities / probabilities.sum(1, keepdims=True), clear.probabilities, atol=5e-3, rtol=0
        )
        assert private.bits["online"] == sum(row["bits"] for row in private.rows if row["phase"] == "online")
        assert private.rounds == 1 + 4 * 8
        assert private.seconds > 0


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["method=pfedbayespt"], r"prompts\.length"),
        (["method=fedlora"], r"method\.weights"),
        (["method=fedavg_head", "head.prior=client"], r"head\.prior"),
        (["method=knn_per"], "KNNPerClient"),
        (["method=pfedbayespt", "emulator=uniform"], r"prompts\.length"),
    ],
)
def test_methods_that_do_not_fit_are_refused_by_name(overrides, reason):
    _, client = smoke(*overrides)
    inputs = client.inputs.of_images(styled_digits(16).images[:2], 0)
    with pytest.raises(ConfigError, match=f"private=True: {reason}"):
        client.linear_scores(inputs, client.initial())
