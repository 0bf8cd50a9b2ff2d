"""A gRPC server in this process that takes Triton's inference calls and can be told to stall."""

import threading
import time
from concurrent import futures

import grpc

from pipeline.serving.load.generator import METHOD


class FakeModelServer:
    """Echoes each request after `seconds`; until `stalls_until` (time.perf_counter) nothing is answered."""

    def __init__(self, seconds: float = 0.0, threads: int = 8) -> None:
        self.seconds, self.stalls_until = seconds, 0.0
        self.asked: list[bytes] = []
        self.answered = 0
        self._lock = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(threads))
        _, service, method = METHOD.split("/")
        handler = grpc.unary_unary_rpc_method_handler(self._infer)
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {method: handler})])
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def _infer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked.append(request)
        time.sleep(max(self.seconds, self.stalls_until - time.perf_counter()))
        if request == b"bad":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")
        with self._lock:
            self.answered += 1
        return request

    def stop(self) -> None:
        self._server.stop(None)
