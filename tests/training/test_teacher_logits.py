import torch
from training_jobs import PLAIN

from pipeline.data.manifest import load_manifest
from pipeline.models import checkpoint
from pipeline.training import teacher_logits
from pipeline.training.fit import new_spec


def test_logits_are_kept_by_weights_images_and_arithmetic(tiny_data, tmp_path):
    spec = new_spec(PLAIN, load_manifest(tiny_data))
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, spec, checkpoint.build(spec))
    file = teacher_logits.file(tmp_path / "a", tiny_data, "cpu float32")
    assert file == teacher_logits.file(tmp_path / "a", tiny_data, "cpu float32") and not file.exists()
    assert file != teacher_logits.file(tmp_path / "b", tiny_data, "cpu float32")
    assert file != teacher_logits.file(tmp_path / "a", tiny_data, "cpu bf16")
    logits = torch.randn(5, 4)
    teacher_logits.save(file, logits)
    assert torch.equal(teacher_logits.load(file), logits) and [path.name for path in file.parent.iterdir()] == [
        file.name
    ]
