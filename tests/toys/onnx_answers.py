"""What an ONNX file answers, in one call."""

from pipeline.runners.onnx_runner import OnnxRunner


def logits(file, images):
    """The logits of the model in `file` for raw `images`."""
    return OnnxRunner(file)({"image": images})["logits"]
