import pytest
from serving_toys import artifact, images

from pipeline.errors import PromotionError
from pipeline.serving.triton.temporary import temporary_models


def test_temporary_models_come_and_go(home, fake, serving):
    stale = home / "triton_repo" / "proxy__eval_old"
    stale.mkdir()
    models = [artifact(home, 2.0, "student"), artifact(home, 3.0, "teacher")]
    with temporary_models(serving, models, fake) as names:
        assert names == {"student": "proxy__eval_student", "teacher": "proxy__eval_teacher"}
        answer = fake.infer(names["teacher"], {"image": images(1)}, attest=True)
        assert answer.outputs["model_sha256"][0].tobytes().hex() == models[1].sha256
        assert not stale.exists()
    assert fake.loaded() == {}
    assert list((home / "triton_repo").iterdir()) == []


def test_a_temporary_model_that_cannot_be_loaded_is_named(home, fake, serving):
    bad = artifact(home, 2.0, "student")
    fake.broken.add(bad.sha256)
    with (
        pytest.raises(PromotionError, match="candidate 'student' cannot be served"),
        temporary_models(serving, [bad], fake),
    ):
        pass
    assert list((home / "triton_repo").iterdir()) == []
