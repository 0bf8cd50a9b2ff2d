"""What is changed means what it should, and everything else stays byte for byte."""

import pytest

from pipeline.errors import SettingsError
from pipeline.settings import reader
from pipeline.settings.edit import update, with_values

VALUES = {"instances": 4, "queue_delay_us": 500}
TEXTS = {
    "absent": "# first line\ndata: {dataset: digits}  # why\n",
    "absent, no line break at the end": "data: {dataset: digits}",
    "nothing at all": "",
    "only a comment": "# nothing here yet\n",
    "flow": "a: 1\nserving: {model: mine, instances: 2}  # ours\nz: off\n",
    "flow over lines": "serving: {\n  model: mine,  # a name\n  instances: 2,\n}\nz: 1e-3\n",
    "block": "serving:\n    # copies\n    instances:   2   # two\n    model: mine\n\n# the end\nz: 1\n",
    "block without ours": "serving:\n  # a name\n  model: mine\nz: 1\n",
    "empty": "serving: {}\nz: 1\n",
    "null": "serving: null\nz: 1\n",
    "odd": 'a: { x: 1,  y: 2 }\nb:\n- 1\n- "q"\nc:\n    d:\n      - 1\ne: ~\ni:    3   # three\nserving: {model: mine}\nz: 1.50\n',
    "umlauts": "# Größe\nserving: {instances: 2}  # für uns\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_values_are_in_and_all_else_is_as_it_was(text):
    before, after = reader.read(text, "before") or {}, reader.read(with_values(text, "serving", VALUES), "after")
    assert after == {**before, "serving": {**(before.get("serving") or {}), **VALUES}}


def test_comments_and_layout_stay_byte_for_byte():
    assert with_values(TEXTS["flow"], "serving", VALUES) == (
        "a: 1\nserving: {queue_delay_us: 500, model: mine, instances: 4}  # ours\nz: off\n"
    )
    assert with_values(TEXTS["block"], "serving", VALUES) == (
        "serving:\n    # copies\n    queue_delay_us: 500\n    instances:   4   # two\n    model: mine\n\n# the end\nz: 1\n"
    )
    assert with_values(TEXTS["absent"], "serving", VALUES) == (
        "# first line\ndata: {dataset: digits}  # why\nserving: {instances: 4, queue_delay_us: 500}\n"
    )


def test_what_a_writer_of_yaml_would_lay_out_anew_stays_too():
    """Dumped by ruamel.yaml, comments inside a flow mapping are lost; `~`, columns and indents are written its own way."""
    assert with_values(TEXTS["flow over lines"], "serving", VALUES) == (
        "serving: {\n  queue_delay_us: 500, model: mine,  # a name\n  instances: 4,\n}\nz: 1e-3\n"
    )
    assert with_values(TEXTS["only a comment"], "serving", VALUES) == (
        "# nothing here yet\nserving: {instances: 4, queue_delay_us: 500}\n"
    )
    assert with_values(TEXTS["odd"], "serving", VALUES) == TEXTS["odd"].replace(
        "model: mine", "instances: 4, queue_delay_us: 500, model: mine"
    )


def test_the_same_again_changes_nothing():
    once = with_values(TEXTS["block"], "serving", VALUES)
    assert with_values(once, "serving", VALUES) == once


def test_the_file_is_replaced_whole(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXTS["flow"])
    path.chmod(0o640)
    update(path, "serving", VALUES)
    assert path.read_text() == with_values(TEXTS["flow"], "serving", VALUES)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["mine.yaml"]


def test_line_breaks_stay_as_they_are(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"a: 1\r\nserving: {instances: 2}\r\nz: 1\r\n")
    update(path, "serving", {"instances": 4})
    assert path.read_bytes() == b"a: 1\r\nserving: {instances: 4}\r\nz: 1\r\n"


@pytest.mark.parametrize("text", ["shared: &shared {instances: 2}\nserving: *shared\n", "{a: 1}\n"])
def test_what_cannot_be_changed_safely_is_left_alone(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(
        SettingsError, match=r"put this into it yourself: serving: \{instances: 4, queue_delay_us: 500\}"
    ):
        update(path, "serving", VALUES)
    assert path.read_text() == text
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(SettingsError, match=r"mine\.yaml is not YAML: line 2, column 1: found duplicate key \"a\""):
        update(path, "serving", VALUES)
    with pytest.raises(SettingsError, match=r"cannot read .*none\.yaml: No such file"):
        update(tmp_path / "none.yaml", "serving", VALUES)
