"""YAML 1.2 into plain values, and what is said about text that is none."""

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import reader


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("# a comment\n", None), ("~", None), ("null", None), ("3", 3), ("-3", -3), ("0x1F", 31), ("0o10", 8),
        ("010", 10), ("1:30", "1:30"), ("0.5", 0.5), ("1e-3", 0.001), ("2E2", 200.0), ("1.5e+3", 1500.0), ("true", True),
        ("FALSE", False), ("off", "off"), ("on", "on"), ("no", "no"), ("yes", "yes"), ("y", "y"), ("'1'", "1"), ('"a\\n"', "a\n"),
        ("[1, [b]]", [1, ["b"]]), ("{a: {b: 1}}", {"a": {"b": 1}}), ("a: &x {b: 1}\nc: {<<: *x}", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)  # fmt: skip
def test_values_are_plain_and_as_yaml_1_2_has_them(text, value):
    read = reader.read(text, "here")
    assert (read, type(read)) == (value, type(value))


def test_nothing_of_a_container_is_of_the_librarys_own_types():
    read = reader.read("a: [1, 0.5, 'x', {b: 0x1F}, 1e-3, \"y\"]\nb: >\n  folded\n", "here")
    assert {type(one) for one in (read, *read.values(), *read["a"], *read["a"][3].values())} == {
        dict,
        list,
        int,
        float,
        str,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: [1,\nc: 2\n", "line 4, column 1: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb: [1,\nc: 2\n", "(while parsing a flow sequence, from line 2, column 4)"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n\tb: 2", "line 2, column 1: found character '\\t' that cannot start any token (while scanning for the next token"),
        ("a: 'b", "line 1, column 6: found unexpected end of stream (while scanning a quoted scalar, from line 1, column 4)"),
        ("a: {b: 1, b: 2}", 'line 1, column 11: found duplicate key "b" with value "2" (original value: "1")'),
        ("*x", "line 1, column 1: found undefined alias 'x'"),
        ("a\n---\nb", "line 2, column 1: but found another document (expected a single document in the stream"),
        ("!!python/name:os.system x", "line 1, column 1: could not determine a constructor for the tag"),
        ("a: \x07", "unacceptable character #x0007: special characters are not allowed"),
        ("2026-13-01", "month must be in 1..12"),
    ],
)  # fmt: skip
def test_what_is_not_yaml_is_said_with_its_place(text, says):
    with pytest.raises(SettingsError) as caught:
        reader.read(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml is not YAML: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
