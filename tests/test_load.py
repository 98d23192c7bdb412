"""Reading a run back: predictions of new images with its parameters."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import fedbayes
from fedbayes.data.sources.styled_digits import styled_digits
from fedbayes.errors import ConfigError, DataError, RunError

SMALL = ["rounds=2", "clients=3", "partition.max_train=20", "prompts.start_layer=3", "evaluate.every=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("results") / "run"
    overrides = [*SMALL, "method.client.personal=[head]", "participation=0.67", f"run_dir={directory}"]
    fedbayes.simulate(overrides)
    return fedbayes.load(directory)


@pytest.fixture(scope="module")
def images():
    return styled_digits(32).images[:12]


def test_a_run_shows_itself_in_one_line(run):
    accuracy = f"{run.summary['final']['accuracy']['mean']:.3f}".removeprefix("0")
    title = "pfedbayespt on styled_digits (domain_mixture), seed 0, 3 clients, 2 rounds"
    assert repr(run) == f"<Run {run.directory}: {title}, accuracy {accuracy}>"


def test_predictions_are_distributions_whose_entropy_splits(run, images):
    prediction = run.predict(images)
    assert prediction.probabilities.shape == (12, 10)
    np.testing.assert_allclose(prediction.probabilities.sum(1), 1, atol=1e-6)
    entropy = -(prediction.probabilities * np.log(prediction.probabilities)).sum(1)
    np.testing.assert_allclose(prediction.entropy, entropy, atol=1e-6)
    np.testing.assert_allclose(
        prediction.expected_entropy + prediction.prompt_uncertainty, prediction.entropy, atol=1e-6
    )
    assert prediction.labels == [prediction.classes[i] for i in prediction.probabilities.argmax(1)]


def test_equal_images_in_any_form_give_equal_predictions(run, images, tmp_path):
    last = images.permute(0, 2, 3, 1).numpy()
    opened = [Image.fromarray(pixels) for pixels in last]
    paths = [tmp_path / f"{i}.png" for i in range(len(opened))]
    for image, path in zip(opened, paths, strict=True):
        image.save(path)
    expected = run.predict(images).probabilities
    for form in (last, opened, paths, images.numpy(), list(last), list(images)):
        np.testing.assert_array_equal(run.predict(form).probabilities, expected)
    for image in (images[0], last[0], opened[0], paths[0], str(paths[0])):
        np.testing.assert_array_equal(run.predict(image).probabilities, run.predict(images[:1]).probabilities)


def test_a_client_predicts_with_what_it_kept_and_strangers_with_the_mean_of_that(run, images):
    stored, client = run.clients.checkpoint, run.clients.client
    trained = sorted(stored.personal)
    assert 0 < len(trained) <= 3
    personal = run.predict(images, partition=trained[0]).probabilities
    assert not np.array_equal(personal, run.predict(images, partition=trained[-1]).probabilities)
    mean = {name: np.mean([stored.personal[p][name] for p in trained], axis=0) for name in stored.personal[trained[0]]}
    client.model.stack([{**stored.server, **mean}])
    used = client.model.trainable()["head.weight"].detach().clone()
    run.predict(images)
    torch.testing.assert_close(client.model.trainable()["head.weight"].detach(), used)


def test_what_cannot_be_predicted_is_refused_by_name(run, images, tmp_path):
    for wrong, message in ((images.float(), "float32"), ([], "no images"), ([tmp_path / "nowhere.png"], "nowhere")):
        with pytest.raises(DataError, match=message):
            run.predict(wrong)
    with pytest.raises(RunError, match="partition=7"):
        run.predict(images, partition=7)
    with pytest.raises(RunError, match="holds no finished run"):
        fedbayes.load(tmp_path)


def test_load_is_a_function_before_and_after_its_module_is_imported(run):
    assert fedbayes.load(run.directory).summary == run.summary
    from fedbayes.load import load

    assert load(run.directory).summary == fedbayes.load(run.directory).summary


def test_importing_fedbayes_loads_nothing_heavy():
    code = "import sys, fedbayes; print([m for m in ('torch', 'flwr', 'timm', 'wandb', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


PARTIAL = ["participation=0.34", "rounds=1"]
"""One client of three trains; the others are strangers that hold images."""


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((method, []) for method in ("pfedpg", "fedper", "fedbabu", "pep_fedpt", "ditto")),
        *(("fedper", PARTIAL), ("fedper", [*PARTIAL, "privacy.noise=1"]), ("ditto", PARTIAL)),
    ],
)
def test_a_clients_prediction_is_the_one_it_was_evaluated_with(method, more, tmp_path):
    """Through the run directory and back: what the server sends this client, what it stored and adapts, its images."""
    fedbayes.simulate([f"method={method}", "experiment=smoke", *more, f"run_dir={tmp_path}/run"])
    loaded = fedbayes.load(tmp_path / "run")
    data = loaded.clients.client.data
    stored = load_file(tmp_path / "run" / "predictions.safetensors")
    for partition in range(3):
        rows = data.indices(partition, "test")
        prediction = loaded.predict(data.images.images[rows], partition=partition)
        is_client = stored["partitions"] == partition
        np.testing.assert_allclose(prediction.probabilities, stored["probabilities"][is_client], atol=1e-5)
        np.testing.assert_array_equal(data.images.labels[rows].numpy(), stored["labels"][is_client])
    _stranger(loaded, data.images.images[:2])


def test_what_a_server_sends_that_depends_on_what_it_remembers_is_sent_again(tmp_path):
    """Here a client's prior, from which its steps before an evaluation start."""
    fedbayes.simulate(["method=pfedbayes_product", "experiment=smoke", f"run_dir={tmp_path}/run"])
    loaded = fedbayes.load(tmp_path / "run")
    stored = loaded.clients.checkpoint
    outgoing = [loaded.clients.outgoing(partition) for partition in range(3)]
    priors = [{name: array for name, array in arrays.items() if name not in stored.server} for arrays in outgoing]
    assert all("prior.head.weight" in prior for prior in priors)
    assert not np.array_equal(priors[0]["prior.head.weight"], priors[1]["prior.head.weight"])


def _stranger(loaded, images):
    """Has no images to train on, and nothing of anybody's own."""
    if loaded.config.names.method == "fedbabu":
        with pytest.raises(ConfigError, match=r"optim\.finetune_steps=50: .* partition"):
            loaded.predict(images)
        return
    client, stored = loaded.clients.client, loaded.clients.checkpoint
    loaded.predict(images)
    used = client.model.trainable()["head.weight"].detach()[0].numpy()
    hidden = loaded.config.privacy.noise is not None  # heads without noise are nobody's business
    others = {} if hidden else stored.personal_of(None)
    expected = {**client.model.initial, **stored.server, **others}
    np.testing.assert_array_equal(used, expected["head.weight"])
