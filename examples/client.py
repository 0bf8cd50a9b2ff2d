"""Ask the served proxy for the class of a test image: plain tritonclient, nothing of Flyweight's code."""

import numpy as np
import tritonclient.grpc as triton
from pyarrow import ipc

row = ipc.open_file("data/fashion_mnist/test/part-00000.arrow").get_batch(0).slice(0, 1)
image = np.array(row["image"][0].as_py(), np.uint8).reshape(1, 1, 28, 28)  # raw pixels, N x C x H x W
pixels = triton.InferInput("image", image.shape, "UINT8")
pixels.set_data_from_numpy(image)
best = triton.InferRequestedOutput("logits", class_count=1)  # the server knows the labels
with triton.InferenceServerClient("127.0.0.1:8001") as client:
    answer = client.infer("proxy", [pixels], outputs=[best])
print(answer.as_numpy("logits")[0], "true class:", row["label"][0])
