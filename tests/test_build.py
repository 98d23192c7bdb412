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

    one, same, other = initial(), initial("clients=5", "partition.seed=3"), initial("seed=1")
    assert all(np.array_equal(array, same[name]) for name, array in one.items())
    assert not all(np.array_equal(array, other[name]) for name, array in one.items())


def test_names_of_choices_are_written_down():
    cfg = compose(["method=fedvpt", "partition=iid"])
    assert dict(cfg.names) == {
        "method": "fedvpt",
        "data": "styled_digits",
        "partition": "iid",
        "backbone": "letters",
        "simulation": "in_process",
        "attack": "none",
    }
    assert "hydra" not in cfg


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["+method.strategy.eta=1"], "method.strategy: Averaging got an unexpected keyword argument 'eta'"),
        (["+method.client.foo=1"], "method.client: PromptTuningClient got an unexpected keyword argument 'foo'"),
        (["+optim.foo=1"], "optim: .*got an unexpected keyword argument 'foo'"),
        (["+generator.foo=1"], "generator: GeneratorSettings got an unexpected keyword argument 'foo'"),
        (["+prompts.foo=1"], "prompts: PromptedViT got an unexpected keyword argument 'foo'"),
        (["+data.foo=1"], "data: styled_digits.* got an unexpected keyword argument 'foo'"),
        (["+partition.foo=1"], "partition: .*unexpected keyword argument 'foo'"),
        (["~optim.clip"], "optim: .*missing .*required .*argument: 'clip'"),
        (["method.strategy._target_=nowhere.Foo"], "nowhere.Foo is not installed"),
        (["method.strategy._target_=strategies.averaging.Foo"], "strategies.averaging has no Foo"),
    ],
)
def test_keys_that_nothing_takes_are_named_with_their_place(overrides, said):
    cfg = compose(["experiment=smoke", *overrides])
    with pytest.raises(ConfigError, match=said):
        everything(cfg)


def everything(cfg):
    build.strategy(cfg, build.loop(cfg, build.sampling(cfg)))
    data = build.data(cfg)
    return build.client(cfg, data, build.model(cfg, data, "cpu"))


def test_a_fault_of_ours_is_not_dressed_up_as_the_users(monkeypatch):
    def broken(image_size):
        raise ValueError("a bug")

    monkeypatch.setattr("fedbayes.data.sources.styled_digits.styled_digits", broken)
    with pytest.raises(Exception, match="a bug") as caught:
        build.data(compose())
    assert not isinstance(caught.value, FedbayesError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda server: server.pop("head.weight"), "head.weight is .* but the checkpoint lacks it"),
        (
            lambda server: server.update({"head.bias": np.zeros((3, 4))}),
            r"head.bias is .* but the checkpoint has \(3, 4\)",
        ),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(change, said):
    cfg = compose(["experiment=smoke"])
    parts = build.assemble(cfg)
    server = parts.client.initial()
    build.trained(cfg, parts, Checkpoint(1, server, {}))
    change(server)
    with pytest.raises(ConfigError, match=said):
        build.trained(cfg, parts, Checkpoint(1, server, {}))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=fedvp"], "did you mean fedvpt or fedvpt_deep"),
        (["method=foo"], "method=foo does not exist; .*fedbayes-info method"),
        (["partition=foo"], "partition=foo does not exist; .*fedbayes-info partition"),
        (["promts.length=3"], r"promts.length is no key of the configuration; did you mean prompts.length\."),
        (["data=imagefolder", "data.rooot=/x"], r"did you mean data.root\."),
        (["data.colour=3"], r"data.colour is no key of the configuration; data has image_size\."),
        (["colour=3"], "there are attack, augment, backbone, .*tracking"),
        (["rounds"], "rounds cannot be understood as KEY=VALUE"),
        (["rounds=[1"], r"rounds=\[1 cannot be understood as KEY=VALUE"),
    ],
)
def test_hydras_complaints_come_in_one_line_with_the_choices(overrides, said):
    with pytest.raises(ConfigError, match=said) as caught:
        compose(overrides)
    assert "\n" not in str(caught.value)


def test_one_text_is_no_list_of_overrides():
    with pytest.raises(ConfigError) as caught:
        compose("method=fedvpt rounds=3")
    said = "overrides='method=fedvpt rounds=3' is one text; give a list of such, as in ['method=fedvpt', 'rounds=3']."
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=imagefolder"], "data.root has no default; add data.root=VALUE"),
        (["optim=sgd"], "optim=sgd replaces a whole section"),
        (["optim.clip=${foo}"], "Interpolation key 'foo' not found"),
    ],
)
def test_values_that_are_missing_or_point_to_nothing_are_named(overrides, said):
    with pytest.raises(ConfigError, match=said) as caught:
        resolved(compose(overrides))
    assert "\n" not in str(caught.value)


EMPTY, SOME = np.empty(0, np.int64), np.arange(3)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([ClientSplit(SOME, SOME, SOME)], "1 entries for clients=2"),
        ([ClientSplit(SOME, SOME, SOME), SOME], "2 entries for clients=2"),
        (None, "NoneType for clients=2"),
        ([ClientSplit(SOME, SOME, SOME), ClientSplit(EMPTY, SOME, SOME)], "client 1 of 2.* train .*empty"),
        ([ClientSplit(SOME, EMPTY, SOME)] * 2, "client 0 of 2.* validation .*empty"),
        ([ClientSplit(SOME, SOME, EMPTY)] * 2, "client 0 of 2.* test .*empty"),
        ([ClientSplit(SOME, SOME, SOME - 1)] * 2, r"test .*0\.\.1796"),
        ([ClientSplit(SOME + 1795, SOME, SOME)] * 2, r"train .*0\.\.1796"),
        ([ClientSplit([0, 1], SOME, SOME)] * 2, "train .*list"),
        ([ClientSplit(SOME > 1, SOME, SOME)] * 2, r"train .*0\.\.1796"),
    ],
)
def test_a_partition_from_elsewhere_that_divides_nothing_is_named(result, message, monkeypatch):
    monkeypatch.setattr("fedbayes.data.partitions.schemes.Iid", lambda **_: lambda *_: result)
    with pytest.raises(PartitionError, match=message):
        build.data(compose(["experiment=smoke", "clients=2", "partition=iid"]))
