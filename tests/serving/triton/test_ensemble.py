import threading

import numpy as np
import onnx_toys as toys
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper
from serving_toys import artifact, images, remove_model
from tritonclient.grpc.model_config_pb2 import ModelConfig

from pipeline.errors import PromotionError
from pipeline.machine import places
from pipeline.runners.onnx_runner import OnnxRunner
from pipeline.serving.triton import repository
from pipeline.serving.triton.artifact import from_file
from pipeline.serving.triton.client import Client
from pipeline.serving.triton.ensemble import Step, config_pbtxt, publish, read_steps
from pipeline.serving.triton.errors import TritonError
from pipeline.settings.serving import Serving

LOGITS = Step(model="proxy", inputs={"image": "image"}, outputs={"logits": "scores"})
DOUBLE = Step(model="double", inputs={"x": "scores"}, outputs={"y": "twice"})


def double(path, width=3, batch="n"):
    """(N, 3) -> twice that."""
    shape = [batch, width]
    return toys.write(
        path,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
    )


def configs(tmp_path, other):
    def config(spec, size):
        return text_format.Parse(repository.config_pbtxt(spec, Serving(max_batch_size=size), [1]), ModelConfig())

    return {"proxy": config(artifact(tmp_path, 1.0).spec, 8), "double": config(from_file(other).spec, 4)}


def test_what_no_step_gives_is_asked_and_what_none_takes_is_answered(tmp_path):
    text = config_pbtxt([LOGITS, DOUBLE], configs(tmp_path, double(tmp_path / "d.onnx")))
    config = text_format.Parse(text, ModelConfig())
    assert config.platform == "ensemble"
    assert config.max_batch_size == 4  # what every step takes
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("image", [1, 2, 2])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("twice", [3])]
    assert [step.model_name for step in config.ensemble_scheduling.step] == ["proxy", "double"]
    assert dict(config.ensemble_scheduling.step[1].input_map) == {"x": "scores"}


@pytest.mark.parametrize(
    ("steps", "options", "says"),
    [
        ([], {}, "needs at least one step"),
        (
            [LOGITS, DOUBLE],
            {"width": 4},
            r"'double' takes FP32\[4\] as 'x', but 'scores' is FP32\[3\]: put a model between",
        ),
        ([LOGITS, DOUBLE], {"batch": 1}, r"double has no batch axis and the other steps have one"),
        ([LOGITS, LOGITS], {}, r"step 'proxy' gives 'scores', which is there already"),
        ([LOGITS.model_copy(update={"inputs": {}})], {}, r"names nothing to put into its inputs \['image'\]"),
        (
            [LOGITS.model_copy(update={"outputs": {"labels": "a"}})],
            {},
            r"has no outputs \['labels'\]; it has \['logits', 'model_sha256'\]",
        ),
    ],
)
def test_steps_that_do_not_fit_are_named(tmp_path, steps, options, says):
    with pytest.raises(PromotionError, match=says):
        config_pbtxt(steps, configs(tmp_path, double(tmp_path / "d.onnx", **options)))


def test_steps_are_read_from_yaml(tmp_path):
    file = tmp_path / "steps.yaml"
    file.write_text("- {model: proxy, inputs: {image: image}, outputs: {logits: scores}}\n")
    assert read_steps(file) == (LOGITS,)
    file.write_text("- {model: proxy, inputs: {image: image}, output: {logits: scores}}\n")
    with pytest.raises(PromotionError, match=r"steps\.yaml is no list of steps(.|\n)*outputs"):
        read_steps(file)
    file.write_text("- {model: proxy\n")
    with pytest.raises(PromotionError, match=r"steps\.yaml is not YAML: line 2, column 1: expected ',' or '}'"):
        read_steps(file)


def test_a_promoted_models_name_is_not_taken(home, fake, tmp_path):
    repository.write_model(places.triton_repository() / "proxy", artifact(tmp_path, 1.0), Serving(model="proxy"), 1)
    with pytest.raises(PromotionError, match="proxy is a model that was promoted: give the ensemble another name"):
        publish("proxy", [LOGITS], fake)
    with pytest.raises(PromotionError, match="asks the model 'double', which is not served: promote it first"):
        publish("both", [LOGITS, DOUBLE], fake)
    assert not (places.triton_repository() / "both").exists()


@pytest.mark.integration
def test_an_ensemble_answers_with_what_its_steps_serve_also_while_one_changes(triton, tmp_path):
    one, two = artifact(tmp_path, 1.0), artifact(tmp_path, 2.0)
    member, other, name = "ens_proxy", "ens_double", "ens_both"
    steps = [LOGITS.model_copy(update={"model": member}), DOUBLE.model_copy(update={"model": other})]
    settings = Serving(model=member, instances=1, max_batch_size=8)
    directory = triton.repository / member
    asked = {"image": images(2)}
    first, second = (2 * OnnxRunner(which.onnx)(asked)["logits"] for which in (one, two))
    seen, failed, stop = [], [], threading.Event()
    with Client(timeout=60) as client:
        try:
            repository.write_model(directory, one, settings, 1)
            repository.write_model(triton.repository / other, from_file(double(tmp_path / "d.onnx")), settings, 1)
            for model in (member, other):
                client.load(model, 120)
            publish(name, steps, client)
            np.testing.assert_array_equal(client.infer(name, asked).outputs["twice"], first)

            def ask():
                with Client(timeout=60) as asker:
                    while not stop.is_set():
                        try:
                            seen.append(asker.infer(name, asked).outputs["twice"])
                        except TritonError as error:
                            failed.append(str(error))

            thread = threading.Thread(target=ask)
            thread.start()
            repository.write_version(directory / "2", two, settings, 2)
            (directory / "config.pbtxt").write_text(repository.config_pbtxt(one.spec, settings, [1, 2]))
            client.load(member, 120)
            np.testing.assert_array_equal(client.infer(name, asked).outputs["twice"], second)
            stop.set()
            thread.join()
            assert failed == []
            assert all(np.array_equal(answer, first) or np.array_equal(answer, second) for answer in seen)
            publish(name, steps, client)  # again, in its own place
            np.testing.assert_array_equal(client.infer(name, asked).outputs["twice"], second)
        finally:
            stop.set()
            for model in (name, member, other):
                remove_model(client, model)
