"""Preprocessing as ONNX nodes: what they compute, and that they come off and back on."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED, network_of, normalisation_of, put_back, with_preprocessing
from pipeline.models.preprocessing import Normalisation
from pipeline.models.spec import Preprocessing, image_classifier
from pipeline.runners.onnx_runner import OnnxRunner

SPEC = image_classifier("resnet", {}, (3, 4, 4), ("a", "b"), Preprocessing(mean=(0.3, 0.5, 0.6), std=(0.2, 0.3, 0.25)))


@pytest.fixture
def network():
    """A network that only renames its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", [NORMALISED], ["logits"], "network")],
        "network",
        [helper.make_tensor_value_info(NORMALISED, TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3, 4, 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_the_nodes_do_to_pixels_what_every_other_form_does(network, tmp_path):
    onnx.save(with_preprocessing(network, SPEC), tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    found = OnnxRunner(tmp_path / "model.onnx")({"image": pixels})["logits"]
    np.testing.assert_array_equal(found, Normalisation.of(SPEC.preprocessing)(pixels))


def test_they_come_off_and_back_on(network):
    model = with_preprocessing(network, SPEC)
    alone = network_of(model)
    assert [(one.name, one.type.tensor_type.elem_type) for one in alone.graph.input] == [
        (NORMALISED, TensorProto.FLOAT)
    ]
    assert [node.name for node in alone.graph.node] == ["network"] and not alone.graph.initializer
    again = with_preprocessing(alone, SPEC)
    put_back(alone, model)
    assert again.graph.SerializeToString() == alone.graph.SerializeToString() == model.graph.SerializeToString()


def test_they_are_read_back_from_a_graph(network):
    found, expected = normalisation_of(with_preprocessing(network, SPEC)), Normalisation.of(SPEC.preprocessing)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_array_equal(found.shift, expected.shift)


def test_a_foreign_graph_is_refused(network):
    network.graph.input[0].name = network.graph.node[0].input[0] = "x"
    with pytest.raises(ModelError, match="has no tensor 'normalised'"):
        network_of(network)
