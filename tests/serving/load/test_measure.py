from pipeline.serving.load import measure
from pipeline.serving.load.result import Closed, Open


def test_processes_share_a_load_without_loss():
    assert [share["concurrency"] for share in measure._shares(Closed(7), 3)] == [3, 2, 2]
    assert [share["connections"] for share in measure._shares(Closed(40), 2)] == [2, 2]
    shares = measure._shares(Open(90.0, "constant"), 2)
    assert [(share["rate"], share["place"], share["of"]) for share in shares] == [(90.0, 0, 2), (90.0, 1, 2)]
