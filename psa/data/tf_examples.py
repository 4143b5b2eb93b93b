"""tf.train.Example, the message in a record of TFRecords, parsed by protobuf with lists of bytes left as they lie.

DeepMind wrote arrays of bytes as a string for each byte: CLEVR's records hold a million. In the message such a list is
three bytes a string, of which the third is the value, so that no string has to be made. The schema differs from
TensorFlow's in that a list of bytes is itself declared as bytes: both are the same on the wire.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

# By message: its fields in the order of their numbers, from 1, with a type of FieldDescriptorProto or a message's name.
# A * marks what is repeated.
SCHEMA: Mapping[str, Mapping[str, str]] = {
    "Bytes": {"value": "*BYTES"},
    "Floats": {"value": "*FLOAT"},
    "Integers": {"value": "*INT64"},
    "Feature": {"bytes_list": "BYTES", "float_list": "Floats", "int64_list": "Integers"},
    "Entry": {"name": "BYTES", "feature": "Feature"},
    "Features": {"entries": "*Entry"},
    "Example": {"features": "Features"},
}
ONE_BYTE = (1 << 3 | 2, 1)  # how a string of one byte begins in a list: the first field, of bytes; its length


def parse_example(data: bytes) -> dict[str, np.ndarray]:
    """The features by name, each (values,) of uint8, float32 or int64; strings of one list are joined.

    Raises:
        ValueError: No such message.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _classes()["Example"].FromString(data)
        return {entry.name.decode(errors="replace"): _values(entry.feature) for entry in example.features.entries}
    except DecodeError as error:
        raise ValueError(str(error)) from error


def _values(feature: Any) -> np.ndarray:
    if feature.HasField("float_list"):
        return np.array(feature.float_list.value, np.float32)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, np.int64)
    return _joined(feature.bytes_list)  # what no list holds is no bytes


def _joined(strings: bytes) -> np.ndarray:
    """The bytes of a list of strings, (values,)."""
    if len(strings) % 3 == 0:
        triples = np.frombuffer(strings, np.uint8).reshape(-1, 3)
        if (triples[:, 0] == ONE_BYTE[0]).all() and (triples[:, 1] == ONE_BYTE[1]).all():
            return triples[:, 2].copy()
    return np.frombuffer(b"".join(_classes()["Bytes"].FromString(strings).value), np.uint8)


@cache
def _classes() -> dict[str, Any]:
    """The messages' classes; built here, so that commands that read no TFRecords do not import protobuf."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass

    file = FileDescriptorProto(name="psa.proto", package="psa", syntax="proto2")
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            label = FieldDescriptorProto.LABEL_REPEATED if kind[0] == "*" else FieldDescriptorProto.LABEL_OPTIONAL
            declared = message.field.add(name=field, number=number, label=label)
            if kind.strip("*") in SCHEMA:
                declared.type, declared.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".psa.{kind.strip('*')}"
            else:
                declared.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.strip('*')}")
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"psa.{name}")) for name in SCHEMA}
