"""Parsed by our schema, against TensorFlow's as the package tfrecord has it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfrecord.example_pb2 import Example

from psa.data.tf_examples import parse_example

BYTES = st.lists(st.binary(max_size=4), max_size=6) | st.lists(st.binary(min_size=1, max_size=1), max_size=20)
FLOATS = st.lists(st.floats(width=32, allow_nan=False), max_size=5)
INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.tuples(st.just("bytes_list"), BYTES)
    | st.tuples(st.just("float_list"), FLOATS)
    | st.tuples(st.just("int64_list"), INTEGERS),
    max_size=4,
)


DTYPES = {"float_list": np.float32, "int64_list": np.int64}


@given(FEATURES)
def test_every_list_is_that_of_tensorflows_schema(features):
    example = Example()
    for name, (kind, values) in features.items():
        getattr(example.features.feature[name], kind).value.extend(values)
    found = parse_example(example.SerializeToString())
    assert found.keys() == features.keys()
    for name, (kind, values) in features.items():
        joined = kind == "bytes_list"
        expected = np.frombuffer(b"".join(values), np.uint8) if joined else np.array(values, DTYPES[kind])
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_a_feature_without_a_list_holds_no_bytes():
    example = Example()
    example.features.feature["empty"].SetInParent()
    assert parse_example(example.SerializeToString())["empty"].tolist() == []


@pytest.mark.parametrize(
    "data", [b"\x0a\x05\x0a", b"\x0a\x0a\x0a\x08\x0a\x01a\x12\x03\x0a\x01\x0a"], ids=["features", "list"]
)
def test_what_is_no_message_is_an_error(data):
    with pytest.raises(ValueError, match=r"[Ww]ire|[Pp]ars|[Tt]runcated"):
        parse_example(data)
