import torch
from training_jobs import FIT, job, run, weights


def test_where_bf16_would_be_slow_training_is_in_float32_and_says_so(tiny_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    fit = FIT.model_copy(update={"epochs": 1})
    fallen_back = weights(run(job(tiny_data, tmp_path / "a", fit)))
    assert "train.fit.amp is bf16, which cpu has no instructions for: training in float32" in caplog.text
    off = weights(run(job(tiny_data, tmp_path / "b", fit.model_copy(update={"amp": "off"}))))
    assert all(torch.equal(off[name], fallen_back[name]) for name in off)
