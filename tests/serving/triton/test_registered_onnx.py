"""Files of any interface in a real MLflow registry: they go in, and come back as they were."""

import onnx_toys as toys
import pytest
from registry_toys import registry_on_file

from pipeline.files import sha256
from pipeline.models.spec import SPEC_FILE, load_spec
from pipeline.serving.triton.artifact import from_file

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("toy", [toys.every_type, toys.without_batch])
def test_a_file_of_any_interface_comes_back_as_it_was(tmp_path, toy):
    directory = tmp_path / toy.__name__
    model = from_file(toy(directory / "model.onnx"))
    (directory / SPEC_FILE).write_text(model.spec.model_dump_json())
    (tmp_path / "back").mkdir()
    with registry_on_file(tmp_path) as registry:
        version = registry.register(toy.__name__, directory, {"sha256": model.sha256})
        assert registry.fetch(toy.__name__, version, tmp_path / "back")["sha256"] == model.sha256
    assert sha256(tmp_path / "back" / "model.onnx") == model.sha256
    assert load_spec(tmp_path / "back") == model.spec
