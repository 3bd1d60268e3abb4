# pyright: strict, reportMissingTypeStubs=false
"""TFRecord files of tf.train.Example, read and written without TensorFlow.

Framing (tensorflow/core/lib/io/record_writer.h): uint64 length, uint32 masked CRC of the length, the payload, uint32
masked CRC of the payload, all little-endian. Example (tensorflow/core/example/{example,feature}.proto): a map from key
to a list of bytes, of float32 or of int64.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from crane_x7_vla.errors import DataError

MAX_RECORD_BYTES = 256 * 1024 * 1024
"""Larger records are taken for damage: three uncompressed full-HD images and their floats are below 20 MiB."""

Feature = list[bytes] | NDArray[np.float32] | NDArray[np.int64]
"""What one key of a decoded Example holds."""

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size
_FRAME_BYTES = _HEADER_BYTES + _CRC.size
_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h


def masked_crc(data: bytes) -> int:
    """CRC-32C of ``data``, rotated and offset as TFRecord wants it."""
    crc = int(google_crc32c.value(data))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def write_record(file: BinaryIO, payload: bytes) -> int:
    """Append one framed record, in a single write where the system allows; returns the number of bytes."""
    if len(payload) > MAX_RECORD_BYTES:
        raise ValueError(f"record of {len(payload)} bytes, at most {MAX_RECORD_BYTES} are allowed")
    length = _LENGTH.pack(len(payload))
    frame = b"".join((length, _CRC.pack(masked_crc(length)), payload, _CRC.pack(masked_crc(payload))))
    written = 0
    while written < len(frame):  # an unbuffered file may take only a part at a time
        written += file.write(frame[written:])
    return written


class DamagedFileError(DataError):
    """A TFRecord file was cut off or changed; names the file and the record."""


@dataclass(frozen=True, slots=True)
class RecordScan:
    """What the framing of a file says, without looking at the payloads.

    offsets: int64 [N] where each payload begins. lengths: int64 [N] payload bytes. end: where the last whole record
    ends. damage: why scanning stopped before the end of the file, None when the file is whole.
    """

    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    end: int
    damage: str | None


def scan_records(file: BinaryIO) -> RecordScan:
    """Walk the records of a file by their headers, up to its end or the first damage."""
    size = os.fstat(file.fileno()).st_size
    offsets: list[int] = []
    lengths: list[int] = []
    position = 0
    damage = None
    while position < size:
        where = f"record {len(offsets)} at byte {position}"
        if size - position < _HEADER_BYTES:
            damage = f"{where} is cut off"
            break
        file.seek(position)
        header = file.read(_HEADER_BYTES)
        (length,) = _LENGTH.unpack_from(header)
        if _CRC.unpack_from(header, _LENGTH.size)[0] != masked_crc(header[: _LENGTH.size]):
            damage = f"{where} has a damaged header"
            break
        if length > MAX_RECORD_BYTES:
            damage = f"{where} claims {length} bytes, at most {MAX_RECORD_BYTES} are allowed"
            break
        if size - position < _FRAME_BYTES + length:
            damage = f"{where} is cut off: {length} bytes announced, {size - position - _HEADER_BYTES} left"
            break
        offsets.append(position + _HEADER_BYTES)
        lengths.append(length)
        position += _FRAME_BYTES + length
    return RecordScan(np.array(offsets, np.int64), np.array(lengths, np.int64), position, damage)


class RecordFile:
    """Random access to the records of one file, by an index of offsets made once.

    The file is opened for each access, so thousands of instances cost no descriptors and may go to worker processes.
    Raises DamagedFileError, and DataError for a file that cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _open(path) as file:
            scan = scan_records(file)
        if scan.damage is not None:
            raise DamagedFileError(f"{path}: {scan.damage}; {len(scan.offsets)} whole records come before it")
        self._offsets = scan.offsets
        self._lengths = scan.lengths

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> bytes:
        """Payload of one record; raises DamagedFileError when its checksum is wrong."""
        with _open(self.path) as file:
            return self._read(file, range(len(self))[index])

    def __iter__(self) -> Iterator[bytes]:
        """All payloads in order, one in memory at a time."""
        with _open(self.path) as file:
            for index in range(len(self)):
                yield self._read(file, index)

    def _read(self, file: BinaryIO, index: int) -> bytes:
        length = int(self._lengths[index])
        file.seek(int(self._offsets[index]))
        block = file.read(length + _CRC.size)
        if len(block) != length + _CRC.size:
            raise DamagedFileError(
                f"{self.path}: record {index} is cut off; the file was shortened after it was opened"
            )
        payload = block[:length]
        if _CRC.unpack_from(block, length)[0] != masked_crc(payload):
            raise DamagedFileError(f"{self.path}: record {index} is damaged, its checksum is wrong")
        return payload


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


# --- Example: protobuf wire format (protobuf.dev/programming-guides/encoding), field numbers of feature.proto ---

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


def encode_example(features: Mapping[str, bytes | Sequence[bytes] | NDArray[np.float32] | NDArray[np.int64]]) -> bytes:
    """Serialized tf.train.Example, the same bytes for the same features whatever their order.

    features: per key bytes, a sequence of bytes, or a float32 or int64 array of at most one dimension.
    Raises ValueError for anything else.
    """
    entries = bytearray()
    for key in sorted(features):
        entry = _field(1, key.encode()) + _field(2, _encode_feature(key, features[key]))
        entries += _field(1, entry)
    return _field(1, bytes(entries))


def _encode_feature(key: str, value: bytes | Sequence[bytes] | NDArray[np.float32] | NDArray[np.int64]) -> bytes:
    if isinstance(value, bytes):
        return _field(_BYTES_LIST, _field(1, value))
    if isinstance(value, np.ndarray):
        if value.ndim > 1:
            raise ValueError(f"{key} has shape {list(value.shape)}, expected at most one dimension")
        if value.dtype == np.float32:
            return _field(_FLOAT_LIST, _field(1, value.astype("<f4").tobytes()))
        if value.dtype == np.int64:
            packed = b"".join(_varint(int(item) & 0xFFFFFFFFFFFFFFFF) for item in value.reshape(-1))
            return _field(_INT64_LIST, _field(1, packed))
        raise ValueError(f"{key} is a {value.dtype} array, expected float32 or int64")
    return _field(_BYTES_LIST, b"".join(_field(1, item) for item in value))


def _field(number: int, payload: bytes) -> bytes:
    return b"".join((_varint(number << 3 | _BYTES), _varint(len(payload)), payload))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_example(data: bytes) -> dict[str, Feature]:
    """Features of a serialized tf.train.Example; keys whose feature is unset are left out.

    Reads what any protobuf writer may produce: packed or not, in any order, unknown fields skipped, the last of
    repeated keys. Raises DataError when the bytes are no Example.
    """
    features: dict[str, Feature] = {}
    for number, kind, value in _fields(data):
        if number != 1 or kind != _BYTES:
            continue
        for entry_number, entry_kind, entry in _fields(_as_bytes(value)):
            if entry_number != 1 or entry_kind != _BYTES:
                continue
            key, feature = _decode_entry(_as_bytes(entry))
            if feature is not None:
                features[key] = feature
    return features


def _decode_entry(data: bytes) -> tuple[str, Feature | None]:
    key, feature = "", None
    for number, kind, value in _fields(data):
        if number == 1 and kind == _BYTES:
            try:
                key = _as_bytes(value).decode()
            except UnicodeDecodeError as error:
                raise DataError(f"a key is not UTF-8: {error}") from error
        elif number == 2 and kind == _BYTES:
            feature = _decode_feature(_as_bytes(value))
    return key, feature


def _decode_feature(data: bytes) -> Feature | None:
    feature: Feature | None = None
    for number, kind, value in _fields(data):
        if kind != _BYTES:
            continue
        if number == _BYTES_LIST:
            feature = [_as_bytes(v) for n, k, v in _fields(_as_bytes(value)) if n == 1 and k == _BYTES]
        elif number == _FLOAT_LIST:
            feature = _decode_floats(_as_bytes(value))
        elif number == _INT64_LIST:
            feature = _decode_ints(_as_bytes(value))
    return feature


def _decode_floats(data: bytes) -> NDArray[np.float32]:
    parts = [_as_bytes(v) for n, k, v in _fields(data) if n == 1 and k in (_BYTES, _FIXED32)]
    raw = b"".join(parts)
    if len(raw) % 4:
        raise DataError(f"a float list of {len(raw)} bytes is not a multiple of 4")
    return np.frombuffer(raw, "<f4").astype(np.float32)


def _decode_ints(data: bytes) -> NDArray[np.int64]:
    values: list[int] = []
    for number, kind, value in _fields(data):
        if number != 1:
            continue
        if kind == _VARINT and isinstance(value, int):
            values.append(value)
        elif kind == _BYTES:
            packed = _as_bytes(value)
            position = 0
            while position < len(packed):
                item, position = _read_varint(packed, position)
                values.append(item)
    return np.array(values, np.uint64).astype(np.int64)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes | int]]:
    """(field number, wire type, value) of a message; fixed-width values come as their bytes."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield tag >> 3, kind, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind == _FIXED64:
            size = 8
        elif kind == _FIXED32:
            size = 4
        else:
            raise DataError(f"not a tf.train.Example: wire type {kind}")
        if size > len(data) - position:
            raise DataError(f"not a tf.train.Example: a field of {size} bytes where {len(data) - position} are left")
        yield tag >> 3, kind, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise DataError("not a tf.train.Example: a number is cut off")
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result & 0xFFFFFFFFFFFFFFFF, position
    raise DataError("not a tf.train.Example: a number of more than 64 bits")


def _as_bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise DataError("not a tf.train.Example: a number where bytes were expected")
    return value
