from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from crane_x7_vla.data.tfrecord import (
    MAX_RECORD_BYTES,
    RecordFile,
    decode_example,
    encode_example,
    masked_crc,
    scan_records,
    write_record,
)
from crane_x7_vla.errors import DataError

PAYLOADS = [b"", b"a", bytes(range(256)) * 40]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "some.tfrecord"
    with target.open("wb") as file:
        for payload in PAYLOADS:
            write_record(file, payload)
    return target


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_masked_crc_is_the_published_one() -> None:
    # crc32c("123456789") = 0xe3069283 (RFC 3720 B.4), masked by hand as in hash/crc32c.h
    assert masked_crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_come_back_in_order_and_by_index(path: Path) -> None:
    assert list(RecordFile(path)) == PAYLOADS
    records = RecordFile(path)
    assert [records[i] for i in (2, 0, 1)] == [PAYLOADS[i] for i in (2, 0, 1)]
    with pytest.raises(IndexError):
        records[3]


@pytest.mark.parametrize("cut", [1, 4, 5, 17, 10240, 10244, 10255])
def test_a_cut_off_file_is_an_error_that_names_the_record(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"some.tfrecord: record 2 at byte \d+ is cut off.*2 whole records"):
        RecordFile(path)
    with path.open("rb") as file:
        scan = scan_records(file)
    assert len(scan.offsets) == 2
    assert scan.end == 16 + 17


def test_a_damaged_payload_is_found_when_it_is_read(path: Path) -> None:
    flip(path, path.stat().st_size - 100)
    records = RecordFile(path)
    assert records[1] == b"a"
    with pytest.raises(DataError, match=r"some.tfrecord: record 2 is damaged"):
        records[2]


def test_a_damaged_length_is_found_when_the_file_is_opened(path: Path) -> None:
    flip(path, 16)
    with pytest.raises(DataError, match="record 1 at byte 16 has a damaged header"):
        RecordFile(path)


def test_an_absurd_length_with_a_right_checksum_allocates_nothing(path: Path) -> None:
    length = struct.pack("<Q", MAX_RECORD_BYTES + 1)
    path.write_bytes(length + struct.pack("<I", masked_crc(length)) + b"x")
    with pytest.raises(DataError, match="claims 268435457 bytes"):
        RecordFile(path)


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing.tfrecord: No such file"):
        RecordFile(tmp_path / "nothing.tfrecord")


def test_writing_to_a_file_that_takes_parts_only_writes_all() -> None:
    class Partly(io.BytesIO):
        def write(self, data: object, /) -> int:
            return super().write(bytes(data)[:7])  # pyright: ignore[reportArgumentType]

    partly, whole = Partly(), io.BytesIO()
    assert write_record(partly, b"x" * 100) == write_record(whole, b"x" * 100) == 116
    assert partly.getvalue() == whole.getvalue()


def test_features_survive_encoding_and_decoding() -> None:
    features = {
        "one": b"\xff\x00",
        "several": [b"a", b"", b"ccc"],
        "none": [],
        "floats": np.array([1.5, -0.0, np.inf], np.float32),
        "ints": np.array([0, -1, 1 << 62, -(1 << 63), 127, 128], np.int64),
        "scalar": np.array(3, np.int64),
        "赤": np.zeros(0, np.float32),
    }
    decoded = decode_example(encode_example(features))
    assert decoded["one"] == [b"\xff\x00"]
    assert decoded["several"] == [b"a", b"", b"ccc"]
    assert decoded["none"] == []
    np.testing.assert_array_equal(decoded["floats"], features["floats"])
    np.testing.assert_array_equal(decoded["ints"], features["ints"])
    np.testing.assert_array_equal(decoded["scalar"], [3])
    assert np.asarray(decoded["赤"]).size == 0
    assert np.asarray(decoded["floats"]).dtype == np.float32
    assert np.asarray(decoded["ints"]).dtype == np.int64


def test_encoding_does_not_depend_on_the_order_of_keys() -> None:
    a, b = np.ones(2, np.float32), b"x"
    assert encode_example({"a": a, "b": b}) == encode_example({"b": b, "a": a})


@pytest.mark.parametrize("value", [np.zeros(2, np.float64), np.zeros((2, 2), np.float32), np.zeros(2, np.int32)])
def test_other_arrays_are_refused(value: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^key "):
        encode_example({"key": value})


def test_unpacked_numbers_and_unknown_fields_are_read() -> None:
    floats = bytes([0x0D]) + struct.pack("<f", 1.0) + bytes([0x0D]) + struct.pack("<f", 2.0)
    unknown = bytes([0x78, 0x05])  # field 15, a varint
    feature = bytes([0x12, len(floats)]) + floats + unknown
    entry = bytes([0x0A, 1]) + b"k" + bytes([0x12, len(feature)]) + feature
    features = bytes([0x0A, len(entry)]) + entry
    assert decode_example(bytes([0x0A, len(features)]) + features + unknown)["k"].tolist() == [1.0, 2.0]  # pyright: ignore
    ints = bytes([0x08, 0x07, 0x08]) + b"\xff" * 9 + b"\x01"
    feature = bytes([0x1A, len(ints)]) + ints
    entry = bytes([0x0A, 1]) + b"k" + bytes([0x12, len(feature)]) + feature
    features = bytes([0x0A, len(entry)]) + entry
    assert decode_example(bytes([0x0A, len(features)]) + features)["k"].tolist() == [7, -1]  # pyright: ignore


def test_every_damage_to_an_example_is_a_data_error_or_still_an_example() -> None:
    data = encode_example({"f": np.ones(3, np.float32), "i": np.array([300, -1], np.int64), "b": [b"xyz", b""]})
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(2000):
        broken = bytearray(data[: rng.integers(len(data) + 1)])
        for position in rng.integers(max(len(broken), 1), size=rng.integers(4)):
            if broken:
                broken[position] = rng.integers(256)
        try:
            decode_example(bytes(broken))
        except DataError:
            refused += 1
    assert 500 < refused < 2000
