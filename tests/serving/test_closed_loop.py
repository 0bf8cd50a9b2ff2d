"""Against a real gRPC server in this process that takes its time."""

import json
import time
from concurrent import futures

import grpc

from pipeline.serving import closed_loop
from pipeline.serving.closed_loop import METHOD


def test_no_answer_is_left_behind(tmp_path, capsys):
    asked, answered = [], []

    def infer(request, context):
        asked.append(request)
        time.sleep(0.03)
        answered.append(request)
        return request

    server = grpc.server(futures.ThreadPoolExecutor(8))
    handler = grpc.method_handlers_generic_handler(
        METHOD.split("/")[1], {METHOD.split("/")[2]: grpc.unary_unary_rpc_method_handler(infer)}
    )
    server.add_generic_rpc_handlers([handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    plan = {"address": f"127.0.0.1:{port}", "concurrency": 8, "seconds": 0.1, "warmup": 0.05, "timeout": 10}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "messages": ["request"]}))
    (tmp_path / "request").write_bytes(b"hello")

    closed_loop.main(tmp_path / "plan.json")

    assert len(answered) == len(asked)
    server.stop(None)
    seen = json.loads(capsys.readouterr().out)
    assert set(asked) == {b"hello"}
    assert 8 <= len(seen["latencies"]) < len(asked)  # warm-up and what was still under way do not count
    assert min(seen["latencies"]) >= 0.03 and seen["failures"] == {}
