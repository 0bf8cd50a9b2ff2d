import pytest
import torch

from pipeline.training import snapshot


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.tensor(7), "c": torch.ones(2, dtype=torch.bfloat16)}
    state = {"epoch": 3, "history": [{"loss": 0.1 + 0.2}], "name": "ü"}
    snapshot.save(tmp_path / "s.safetensors", tensors, state)
    found = snapshot.load(tmp_path / "s.safetensors")
    assert found is not None and found[1] == state
    assert set(found[0]) == set(tensors) and all(torch.equal(found[0][name], tensors[name]) for name in tensors)


def test_a_kill_while_writing_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "s.safetensors"
    snapshot.save(path, {"a": torch.ones(1)}, {"epoch": 1})

    def die(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(snapshot, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        snapshot.save(path, {"a": torch.zeros(1)}, {"epoch": 2})
    found = snapshot.load(path)
    assert found is not None and found[1] == {"epoch": 1} and found[0]["a"] == 1


def test_where_nothing_was_saved_there_is_nothing(tmp_path):
    assert snapshot.load(tmp_path / "s.safetensors") is None
