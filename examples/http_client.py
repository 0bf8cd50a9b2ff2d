"""Ask the served proxy for the class of an image over plain HTTP, with nothing but the standard library.

    python examples/http_client.py PICTURE      784 bytes of raw pixels; without it, a black square

The pixels follow the JSON header as they are, which is Triton's "binary tensor data": a tenth of the bytes of a JSON list.
"""

import json
import sys
import urllib.request
from pathlib import Path

pixels = Path(sys.argv[1]).read_bytes() if len(sys.argv) > 1 else bytes(28 * 28)
tensor = {"name": "image", "shape": [1, 1, 28, 28], "datatype": "UINT8"}
header = json.dumps(
    {
        "inputs": [tensor | {"parameters": {"binary_data_size": len(pixels)}}],
        "outputs": [{"name": "logits", "parameters": {"classification": 3}}],  # the server knows the labels
    }
).encode()
request = urllib.request.Request(
    "http://127.0.0.1:8000/v2/models/proxy/infer",
    data=header + pixels,
    headers={"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"},
)
with urllib.request.urlopen(request, timeout=5) as response:
    answer = json.load(response)
print(answer["outputs"][0]["data"], "from version", answer["model_version"])
