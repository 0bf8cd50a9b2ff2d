"""What the commands refuse, before anything is measured."""

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.errors import FlyweightError, SettingsError


def refused(*arguments):
    done = CliRunner().invoke(main, arguments)
    assert done.exception is not None, done.output
    raise done.exception


CONTRADICTIONS = {
    ("--rate", "100", "--concurrency", "4"): r"--concurrency 4 and --rate 100 exclude each other: a closed loop keeps",
    ("--arrivals", "constant"): r"--arrivals constant says how an open loop spaces its requests: give --rate with it",
    ("--concurrency", "1,x"): r"--concurrency is '1,x': it takes whole numbers from 1 on, such as 1,16,64",
    ("--concurrency", "0"): r"--concurrency is '0': it takes whole numbers from 1 on",
    ("--rate", "-5"): r"--rate is '-5': it takes numbers above 0, such as 100,200,400",
    ("--rate", "inf"): r"--rate is 'inf': it takes numbers above 0",
    ("--plot", "curve.bmp"): r"--plot curve\.bmp: a plot ends in \.png or \.svg",
    ("--json", "/nowhere/load.json"): r"--json /nowhere/load\.json: there is no directory /nowhere; make it first",
}


@pytest.mark.parametrize(("options", "message"), CONTRADICTIONS.items(), ids=[" ".join(one) for one in CONTRADICTIONS])
def test_contradictory_options_are_refused(options, message):
    with pytest.raises(FlyweightError, match=message):
        refused("load", "proxy", *options)


def test_a_misspelt_option_gets_its_near_miss():
    done = CliRunner().invoke(main, ["load", "proxy", "--concurency", "4"])
    assert done.exit_code == 2
    assert "--concurrency" in done.output.split("No such option")[1]


def test_no_server_is_a_sentence_with_a_cure():
    with pytest.raises(
        ConnectionError, match=r"no Triton answers at 127\.0\.0\.1:9: start it with `flyweight up triton`"
    ):
        refused("load", "proxy", "--url", "127.0.0.1:9", "--concurrency", "1")


def test_a_model_and_a_file_are_one_too_many(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(FlyweightError, match=r"give a model \(proxy\) or a file \(--onnx .*m\.onnx\), not both"):
        refused("tune-serving", "proxy", "--onnx", str(tmp_path / "m.onnx"))


def test_tuning_wants_mlflow_before_it_measures(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"MLflow does not answer at http://127\.0\.0\.1:9"):
        refused("tune-serving")


def test_an_unknown_recipe_gets_its_near_miss():
    with pytest.raises(SettingsError, match=r"there is no recipe 'digit'.*did you mean 'digits'"):
        refused("tune-serving", "--recipe", "digit")
