"""Bytes of openpi's protocol: what openpi-client writes is read, and nothing else harms."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest

from sim_eval.core.errors import SimEvalError
from sim_eval.policies.remote import wire
from sim_eval.policies.remote.wire import DTYPES, pack, unpack

openpi = pytest.importorskip("openpi_client.msgpack_numpy")


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {dtype: rng.integers(0, 2, (2, 3, 4)).astype(dtype) for dtype in DTYPES}
    strange = np.array([np.nan, -0.0, np.inf, 5e-324])
    return {**made, "strange": strange, "empty": np.zeros((0, 7)), "turned": np.arange(6.0).reshape(2, 3).T}


def test_arrays_come_through_bit_by_bit_and_can_be_written() -> None:
    for name, array in unpack(pack(arrays())).items():
        assert isinstance(array, np.ndarray)
        assert (array.dtype, array.shape) == (arrays()[name].dtype, arrays()[name].shape)
        assert array.tobytes() == arrays()[name].tobytes()
        assert array.flags.writeable


def test_we_and_openpi_client_read_each_other() -> None:
    message = {**arrays(), "prompt": "lift", "nested": {"n": 3, "list": [1.5, None, True]}}
    theirs, ours = openpi.unpackb(pack(message)), unpack(openpi.packb(message))
    for name, array in arrays().items():
        assert theirs[name].tobytes() == ours[name].tobytes() == array.tobytes()
    assert theirs["nested"] == ours["nested"] == message["nested"]
    assert unpack(openpi.packb({"x": np.float32(0.5), "y": np.uint8(3)})) == {"x": 0.5, "y": 3}


def array_of(**changes: object) -> bytes:
    entries = {"__ndarray__": True, "data": bytes(8), "dtype": "<f8", "shape": [1], **changes}
    return msgpack.packb({"x": {name.encode(): value for name, value in entries.items() if value is not None}})


def nested(depth: int) -> bytes:
    return b"\x81\xa1x" + b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (array_of(dtype="|O"), "dtype |O"),
        (array_of(dtype="|V8"), "dtype |V8"),
        (array_of(dtype="<U2"), "dtype <U2"),
        (array_of(dtype="<c8"), "dtype <c8"),
        (array_of(dtype="<f8,<f8"), "dtype <f8,<f8"),
        (array_of(dtype=[["a", "<f8"]]), "dtype"),
        (array_of(dtype=b"<f8"), "dtype"),
        (array_of(dtype=None), "other entries"),
        (array_of(more=1), "other entries"),
        (array_of(shape=[2]), "bytes are not those of"),
        (array_of(shape=[]), None),
        (array_of(shape=[-1, -1]), "shape"),
        (array_of(shape=[2**62, 4]), "bytes are not those of"),
        (array_of(shape=[0, 2**63], data=b""), "no msgpack"),
        (array_of(shape=[1.0]), "shape"),
        (array_of(shape=[True]), "shape"),
        (array_of(shape=[1] * 9), "shape"),
        (array_of(shape=1), "shape"),
        (array_of(data="12345678"), "bytes are not those of"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": "1", b"dtype": "<f8"}}), "no number"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1, b"dtype": "|O"}}), "dtype |O"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"data": 1 << 63, b"dtype": "<i4"}}), "no msgpack"),
        (msgpack.packb({b"x": 1}), "names are no text"),
        (msgpack.packb({"x": msgpack.ExtType(5, b"abc")}), "extension of type 5"),
        (msgpack.packb([1, 2]), "not a table"),
        (msgpack.packb({"x": 1}) + b"\xc0", "no msgpack"),
        (msgpack.packb({"x": "abc"})[:-1], "no msgpack"),
        (msgpack.packb({"x": b"\xff\xfe"}, use_bin_type=False), "no msgpack"),
        (msgpack.packb({"x": [0] * 5000}), "no msgpack"),
        (msgpack.packb({"x": [[{}] * 4000] * 4}), "more than 10000"),
        (b"\x81\xa1x\xdd\xff\xff\xff\xff", "no msgpack"),
        (nested(5000), "no msgpack"),
        (b"", "no msgpack"),
        (b"\xc1", "no msgpack"),
    ],
)
def test_what_is_not_a_message_is_one_line(data: bytes, words: str | None) -> None:
    if words is None:  # a scalar has the shape []
        assert np.shape(unpack(data)["x"]) == ()
        return
    with pytest.raises(SimEvalError) as told:
        unpack(data)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "boom",)  # type: ignore[return-value]

    bomb = pickle.dumps(Bomb())
    lebedovs = msgpack.packb({"x": {b"nd": True, b"type": "O", b"kind": b"O", b"shape": [1], b"data": bomb}})
    for data in (bomb, array_of(dtype="|O", data=bomb), lebedovs):
        with pytest.raises(SimEvalError):
            unpack(data)
    assert not list(tmp_path.iterdir())


def test_damage_anywhere_is_refused_or_read_but_never_raises_otherwise() -> None:
    whole = bytearray(pack({**arrays(), "prompt": "lift", "nested": {"n": 3}}))
    rng = np.random.default_rng(1)
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        try:
            unpack(bytes(damaged[: rng.integers(1, len(whole) + 1)]))
        except SimEvalError:
            continue


def test_what_the_wire_does_not_know_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (np.array([None]), np.array(["a"]), np.zeros(2, complex), object(), 1 << 70):
        with pytest.raises(SimEvalError, match="cannot be sent"):
            pack({"x": value})
    monkeypatch.setattr(wire, "MAX_MESSAGE", 100)
    with pytest.raises(SimEvalError, match="at most 100 are sent"):
        pack({"x": np.zeros(100, np.uint8)})
    with pytest.raises(SimEvalError, match="at most 100 are read"):
        unpack(bytes(101))
