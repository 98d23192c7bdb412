"""From configuration to objects: what cannot be built is said with its place, and any Flower strategy can be chosen."""

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAdam

from fedbayes import build
from fedbayes.config.compose import compose, resolved
from fedbayes.data.partitions.splits import ClientSplit
from fedbayes.errors import ConfigError, FedbayesError, PartitionError
from fedbayes.storage.checkpoint import Checkpoint


def test_a_strategy_of_flowers_is_chosen_by_its_name_alone():
    cfg = compose(["method.strategy._target_=flwr.serverapp.strategy.FedAdam", "+method.strategy.eta=0.5"])
    flower = build.strategy(cfg, build.loop(cfg, build.sampling(cfg))).flower
    assert isinstance(flower, FedAdam)
    assert flower.eta == 0.5


def test_equal_configurations_build_equal_initial_parameters():
    def initial(*overrides):
        cfg = compose(["experiment=smoke", *overrides])
        data = build.data(cfg)
        return build.client(cfg, data, build.model(cfg, data, "cpu")).initial()

    first, same, other = initial(), initial("clients=5", "partition.seed=3"), initial("seed=1")
    assert all(np.array_equal(array, same[name]) for name, array in first.items())
    assert not all(np.array_equal(array, other[name]) for name, array in first.items())


def test_names_of_choices_are_written_down():
    cfg = compose(["method=fedvpt", "partition=iid"])
    assert dict(cfg.names) == {
        "method": "fedvpt",
        "data": "styled_digits",
        "partition": "iid",
        "backbone": "letters",
        "simulation": "in_process",
        "attack": "none",
        "emulator": "none",
        "sparse": "none",
    }
    assert "hydra" not in cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+method.strategy.eta=1"], "method.strategy: Averaging .*'eta'"),
        (["+method.client.foo=1"], "method.client: PromptTuningClient .*'foo'"),
        (["+optim.foo=1"], "optim: .*'foo'"),
        (["+generator.foo=1"], "generator: GeneratorSettings .*'foo'"),
        (["+prompts.foo=1"], "prompts: PromptedViT .*'foo'"),
        (["+data.foo=1"], "data: styled_digits.*'foo'"),
        (["+partition.foo=1"], "partition: .*'foo'"),
        (["~optim.clip"], "optim: .*missing .*required .*argument: 'clip'"),
        (["method.strategy._target_=strategies.bse.FedAvg"], "strategies has no bse; did you mean base"),
        (["method.strategy._target_=nowhere.Foo"], "nowhere.Foo is not installed"),
        (["method.strategy._target_=strategies.averaging.Foo"], "strategies.averaging has no Foo"),
    ],
)
def test_keys_that_nothing_takes_are_named_with_their_place(overrides, message):
    with pytest.raises(ConfigError, match=message):
        build.assemble(compose(["experiment=smoke", *overrides]), build.NoEngine())


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def broken(image_size):
        raise ValueError("a bug")

    monkeypatch.setattr("fedbayes.data.sources.styled_digits.styled_digits", broken)
    with pytest.raises(Exception, match="a bug") as caught:
        build.data(compose())
    assert not isinstance(caught.value, FedbayesError)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda server: server.pop("head.weight"), "head.weight is .* checkpoint lacks it"),
        (lambda server: server.update({"head.bias": np.zeros((3, 4))}), r"head.bias is .* checkpoint has \(3, 4\)"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, message):
    cfg = compose(["experiment=smoke"])
    parts = build.assemble(cfg, build.NoEngine())
    server = parts.client.initial()
    build.trained(cfg, parts, Checkpoint(1, server, {}))
    change(server)
    with pytest.raises(ConfigError, match=message):
        build.trained(cfg, parts, Checkpoint(1, server, {}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=fedvp"], "did you mean fedvpt or fedvpt_deep"),
        (["method=foo"], "method=foo does not exist; .*fedbayes-info method"),
        (["partition=foo"], "partition=foo does not exist; .*fedbayes-info partition"),
        (["promts.length=3"], r"promts.length is no key .* did you mean prompts.length\."),
        (["data=imagefolder", "data.rooot=/x"], r"did you mean data.root\."),
        (["data.colour=3"], r"data.colour is no key .* data has image_size\."),
        (["colour=3"], "there are attack, augment, backbone, .*tracking"),
        (["rounds"], "rounds cannot be understood as KEY=VALUE"),
        (["rounds=[1"], r"rounds=\[1 cannot be understood as KEY=VALUE"),
    ],
)
def test_hydras_complaints_come_in_one_line_with_the_choices(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_a_text_is_no_list_of_overrides():
    with pytest.raises(ConfigError, match=r"overrides='method=fedvpt rounds=3'.*\['method=fedvpt', 'rounds=3'\]"):
        compose("method=fedvpt rounds=3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=imagefolder"], "data.root has no default; add data.root=VALUE"),
        (["optim=sgd"], "optim=sgd replaces a whole section"),
        (["optim.clip=${foo}"], "Interpolation key 'foo' not found"),
    ],
)
def test_values_that_are_missing_or_point_to_nothing_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolved(compose(overrides))
    assert "\n" not in str(caught.value)


EMPTY, ROWS = np.empty(0, np.int64), np.arange(3)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([ClientSplit(ROWS, ROWS, ROWS)], "1 entries for clients=2"),
        ([ClientSplit(ROWS, ROWS, ROWS), ROWS], "2 entries for clients=2"),
        (None, "NoneType for clients=2"),
        ([ClientSplit(ROWS, ROWS, ROWS), ClientSplit(EMPTY, ROWS, ROWS)], "client 1 of 2.* train .*empty"),
        ([ClientSplit(ROWS, EMPTY, ROWS)] * 2, "client 0 of 2.* validation .*empty"),
        ([ClientSplit(ROWS, ROWS, EMPTY)] * 2, "client 0 of 2.* test .*empty"),
        ([ClientSplit(ROWS, ROWS, ROWS - 1)] * 2, r"test .*0\.\.1796"),
        ([ClientSplit(ROWS + 1795, ROWS, ROWS)] * 2, r"train .*0\.\.1796"),
        ([ClientSplit([0, 1], ROWS, ROWS)] * 2, "train .*NumPy array"),
        ([ClientSplit(ROWS > 1, ROWS, ROWS)] * 2, r"train .*0\.\.1796"),
    ],
)
def test_a_partition_from_elsewhere_that_divides_nothing_is_named(result, message, monkeypatch):
    monkeypatch.setattr("fedbayes.data.partitions.schemes.Iid", lambda **_: lambda *_: result)
    with pytest.raises(PartitionError, match=message):
        build.data(compose(["experiment=smoke", "clients=2", "partition=iid"]))
