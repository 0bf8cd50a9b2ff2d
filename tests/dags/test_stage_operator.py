"""The operator runs a real process: its arguments, its exit codes, its link, and its end when Airflow wants it to end."""

import json
import os
import signal
import sys
import time

import pytest
from process_state import has_ended

from pipeline.settings.form import DEFAULT_RECIPE


def calls(home):
    return [json.loads(line) for line in (home / "calls.jsonl").read_text().splitlines()]


def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < end, f"{path} did not come within 30 seconds"
        time.sleep(0.02)
    return path.read_text()


def gone(pid):
    end = time.monotonic() + 30
    while not has_ended(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_stage_gets_settings_inputs_and_the_name_of_the_pipeline_run(operator, context, tmp_path):
    conf = {"recipe": "digits", "force": True, "train.fit.epochs": 3, "train.fit.lr": None, "typo": "x"}
    task = operator("distill", inputs={"data": "prepare_data", "teacher": "train"})
    assert task.execute(context(**conf)) == "distill-run"
    arguments = calls(tmp_path)[0]["arguments"]
    assert arguments[:6] == ["--recipe", "digits", "--set", "train.fit.epochs=3", "--set", "typo=x"]
    assert arguments[6:-2] == [
        "--pipeline", "run-7", "--input", "data=prepare_data-run", "--input", "teacher=train-run", "--force"
    ]  # fmt: skip
    assert arguments[-2] == "--result"


def test_a_run_without_configuration_takes_the_default_recipe(operator, context, tmp_path):
    task = operator("check")
    given = context()
    given["dag_run"].conf = None
    assert task.execute(given) is None
    assert calls(tmp_path)[0]["arguments"] == ["--recipe", DEFAULT_RECIPE]


def test_report_gets_only_the_name_of_the_pipeline_run(operator, context, tmp_path):
    assert operator("report").execute(context(recipe="digits")) is None
    assert calls(tmp_path)[0]["arguments"] == ["--pipeline", "run-7"]


def test_the_mlflow_run_remembers_its_airflow_task(operator, context, tmp_path):
    operator().execute(context())
    assert calls(tmp_path)[0]["tags"] == {
        "FLYWEIGHT_AIRFLOW_RUN_ID": "run-7",
        "FLYWEIGHT_AIRFLOW_RUN_URL": "http://127.0.0.1:8080/dags/make_proxy/runs/run-7",
        "FLYWEIGHT_AIRFLOW_TRY_NUMBER": "1",
    }


@pytest.fixture
def link():
    from stage_operator import MlflowRunLink

    return MlflowRunLink()


def test_the_link_is_there_before_the_stage_ends_and_after_it_failed(link, operator, context):
    task, given = operator(), context(stand_in={"train": "crash"})
    with pytest.raises(RuntimeError):
        task.execute(given)
    url = "http://127.0.0.1:5999/#/experiments/1/runs/train-run"
    assert given["ti"].pushed == {"mlflow_run_url": url}
    assert link.get_link(task, ti_key=None) == url


def test_each_line_reaches_the_log(operator, context):
    from structlog.testing import capture_logs

    with capture_logs() as logs:
        operator().execute(context())
    assert logs[-1]["event"] == "[train] done"


def test_a_users_error_is_not_tried_again_and_says_the_whole_sentence(exceptions, operator, context):
    with pytest.raises(exceptions.AirflowFailException, match=r"^train.fit has no 'epoch'\n  did you mean 'epochs'\?$"):
        operator().execute(context(stand_in={"train": "user_error"}))


def test_any_other_failure_may_be_tried_again(operator, context):
    with pytest.raises(
        RuntimeError, match=r"train ended with exit code 1[^$]*ConnectionError: the store is away"
    ) as info:
        operator().execute(context(stand_in={"train": "crash"}))
    assert type(info.value) is RuntimeError


def test_a_skipped_stage_leaves_its_run_for_those_that_read_it(exceptions, operator, context):
    given = context(stand_in={"build_tensorrt": "skip"})
    with pytest.raises(exceptions.AirflowSkipException, match=r"^no GPU here$"):
        operator("build_tensorrt").execute(given)
    assert given["ti"].pushed["return_value"] == "build_tensorrt-run"


def in_a_process(function):
    """Start `function` in a process that, as Airflow's task runner does, answers SIGTERM with on_kill."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        except BaseException as error:  # its message is what the parent can see of it
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid


def test_a_command_killed_from_outside_may_be_tried_again_and_leaves_nothing(operator, context, tmp_path):
    task, given = operator(), context(stand_in={"train": "hang"})
    killer = in_a_process(lambda: os.kill(int(wait_for(tmp_path / "train.pids").split()[0]), signal.SIGKILL))
    with pytest.raises(RuntimeError, match=r"^train was ended by SIGKILL"):
        task.execute(given)
    os.waitpid(killer, 0)
    assert gone(int((tmp_path / "train.pids").read_text().split()[1]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_the_task(operator, context, tmp_path, number):
    task, given = operator(), context(stand_in={"train": "hang"})

    def run():
        signal.signal(signal.SIGTERM, lambda *_: task.on_kill())
        task.execute(given)

    pid = in_a_process(run)
    children = [int(child) for child in wait_for(tmp_path / "train.pids").split()]
    os.kill(pid, number)
    os.waitpid(pid, 0)
    assert all(map(gone, children))


def test_without_an_error_line_the_last_lines_are_the_error():
    from stage_operator import error_text

    assert error_text(["a", "b", "c", "d", "e", "f"]) == "b\nc\nd\ne\nf"
    assert error_text(["error: first", "more", "flyweight: error: last", "its cure"]) == "last\nits cure"
    assert error_text([]) == "It printed nothing."
