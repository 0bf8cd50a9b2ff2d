"""The least that a model.py around ONNX Runtime can do: one run for a batch, and no care of any kind.

It stands in the place of Flyweight's model.py, with the same config, and has identity.py beside it. No batch that fails is
tried in halves, nothing is attested, limited, sampled or checked. What it answers less than the identity is what the network and
ONNX Runtime take of the machine; what Flyweight's model.py answers less than it, is what that care costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from identity import given, taken


class TritonPythonModel:
    """One copy: a session in a process of its own, with the threads that the config says."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the network."""
        config = json.loads(args["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        network = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self.source, self.name = config["input"][0]["name"], config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request of a batch."""
        parts = [taken(request) for request in requests]
        batch = parts[0] if len(parts) == 1 else np.concatenate(parts)
        (answers,) = self.session.run([self.name], {self.source: batch})
        responses, start = [], 0
        for part in parts:
            responses.append(given(self.name, answers[start : start + len(part)]))
            start += len(part)
        return responses
