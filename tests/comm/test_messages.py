"""The wire: arrays come back as they went, and personal parameters are in no reply."""

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedbayes.comm.messages import (
    ClientUpdate,
    encode_once,
    from_record,
    keep_personal,
    payload_bytes,
    read_request,
    read_update,
    seconds_for,
    to_record,
    write_reply,
    write_request,
)
from fedbayes.simulation.flower_private import claim_identity

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3).T, "a": np.array(2.5), "n": np.array([1, 2])}


@pytest.fixture(autouse=True)
def _process_is_a_server():
    claim_identity()


def request(arrays=ARRAYS, **config):
    return RecordDict({"arrays": to_record(arrays), "config": ConfigRecord({"server-round": 3, **config})})


def test_personal_parameters_are_in_no_reply():
    update = ClientUpdate(4, {"w": np.ones(2)}, 5, {"loss": 0.5}, personal={"head": np.full(2, 7.0)})
    reply = write_reply(update)
    assert payload_bytes([reply]) == payload_bytes([write_reply(ClientUpdate(4, {"w": np.ones(2)}, 5, {}))])
    assert (len(reply.array_records), len(reply.metric_records), len(reply.config_records)) == (1, 1, 0)
    decoded = read_update(4, reply)
    assert (decoded.partition, decoded.num_examples, decoded.metrics, decoded.personal) == (4, 5, {"loss": 0.5}, {})
    assert (decoded.has_personal, decoded.payload) == (True, payload_bytes([reply]))
    assert list(decoded.arrays) == ["w"]


def test_a_request_comes_back_as_it_was_written():
    records = encode_once({2: ARRAYS, 5: ARRAYS, 9: {"a": np.ones(1)}})
    assert records[2] is records[5]
    content = write_request(records[9], 3, "test", accepted=2, adapt=0, fault="nan", seconds=1.5)
    decoded = read_request(content, 9, "evaluate", RecordDict(), {})
    assert (decoded.partition, decoded.server_round, decoded.kind, decoded.split) == (9, 3, "evaluate", "test")
    assert (list(decoded.arrays), decoded.adapt, decoded.fault, seconds_for(content)) == (["a"], 0, "nan", 1.5)
    plain = write_request(records[2], 1, "", accepted=0)
    decoded = read_request(plain, 2, "train", RecordDict(), {})
    assert (list(decoded.arrays), decoded.adapt, decoded.fault, seconds_for(plain)) == (list(ARRAYS), None, "", None)


def test_arrays_that_many_clients_are_sent_are_decoded_once():
    content, known = request(), {}
    first, second = (read_request(content, p, "train", RecordDict(), known) for p in (1, 2))
    assert first.arrays is second.arrays
    assert len(known) == 1


def test_personal_parameters_of_the_accepted_round_come_with_the_request():
    state = RecordDict()
    for server_round, accepted in ((1, 0), (2, 1), (3, 1)):
        content = request(**{"accepted-round": accepted, "server-round": server_round})
        keep_personal(state, ClientUpdate(0, {}, 1, {}, {"head": np.full(1, float(server_round))}), content)
    assert len(state) == 2
    personal = [read_request(request(**{"accepted-round": r}), 0, "train", state, {}).personal for r in range(4)]
    assert personal == [{}, {"head": np.ones(1)}, {}, {"head": np.full(1, 3.0)}]
    keep_personal(empty := RecordDict(), ClientUpdate(0, {"w": np.ones(1)}, 1, {}), request())
    assert len(empty) == 0


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_reply_without_a_positive_weight_or_its_records_is_rejected(weight):
    metrics = MetricRecord({"num-examples": weight})
    with pytest.raises(ValueError, match="num-examples"):
        read_update(0, RecordDict({"arrays": to_record({}), "metrics": metrics}))
    with pytest.raises(ValueError, match="expected arrays and metrics"):
        read_update(0, RecordDict({"metrics": metrics}))


def test_bytes_grow_with_the_arrays_alone():
    small, large = (payload_bytes([request({"w": np.zeros(n, np.float32)})]) for n in (100, 1100))
    assert large - small == 4000
    assert small - 400 < 200


ODD = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.float64).reshape(2, 3).T,
    np.zeros((0, 4), np.float32),
    np.array(3.5),
    np.array([True, False]),
    np.array([1, 2], np.int64),
    np.array([1.5, np.nan], np.float16),
    np.array([1, 2], ">i4"),
    np.array([1 + 2j], np.complex64),
    np.array(["a", "bc"]),
]


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{value.dtype}{value.shape}")
def test_arrays_cross_the_wire_as_flower_itself_would_carry_them(value):
    ours, flower = to_record({"x": value})["x"], Array(np.asarray(value, order="C"))
    assert (ours.dtype, ours.shape, ours.stype, ours.data) == (flower.dtype, flower.shape, flower.stype, flower.data)
    for array in (ours, Array(value)):
        decoded = from_record(ArrayRecord({"x": array}))["x"]
        np.testing.assert_array_equal(decoded, value)
        assert (decoded.dtype, decoded.shape) == (array.numpy().dtype, value.shape)
        assert decoded.flags.writeable


def test_records_come_back_in_their_order():
    assert list(from_record(to_record(ARRAYS))) == list(ARRAYS)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:90], lambda d: b"nonsense", lambda d: b""])
def test_a_damaged_array_is_an_error_and_not_other_numbers(damage):
    good = Array(np.arange(4.0))
    with pytest.raises((ValueError, EOFError, OSError)):
        from_record(ArrayRecord({"x": Array(good.dtype, good.shape, good.stype, damage(good.data))}))


def archive():
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def headed(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def foreign(data, dtype="float32", shape=(3,)):
    return Array(dtype, shape, "numpy.ndarray", data)


def claimed(shape, fill=b""):
    return foreign(headed(str({"descr": "<f8", "shape": shape}).encode()) + fill, "float64", shape)


FOREIGN = {
    "archive": foreign(archive()),
    "no archive": foreign(b"PK\x03\x04 and so on"),
    "open brackets": foreign(headed(b"(" * 9000)),
    "deep sum": foreign(headed(b"1" + b"+1" * 4500)),
    "deep attributes": foreign(headed(b"a" + b".a" * 4000)),
    "pickle": foreign(b"\x80\x04N." + bytes(20)),
    "objects": foreign(headed(b"{}") + bytes(24), "object"),
    "several": foreign(bytes(200), "f4,f4"),
    "endless": claimed((10**13,), bytes(80)),
    "longer than it is": claimed((10**6,), bytes(80)),
    "negative": claimed((-4, -2), bytes(64)),
    "long nothing": claimed((0, 10**18)),
    "columns first": Array(np.asfortranarray(np.ones((2, 3)))),
    "another shape": foreign(Array(np.ones((2, 4))).data, "float64", (8,)),
    "another type": foreign(Array(np.ones(8)).data, "int64", (8,)),
}


@pytest.mark.parametrize("array", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_array_as_we_send_them_is_refused_and_never_parsed(array, monkeypatch):
    monkeypatch.setattr(np, "load", None)
    reply = RecordDict({"arrays": ArrayRecord({"x": array}), "metrics": MetricRecord({"num-examples": 1})})
    with pytest.raises(ValueError, match=r"x is said to be .*; send "):
        read_update(0, reply)
