"""Quantize an ONNX file by NNCF with its defaults: ``python nncf_quantize.py FLOAT IMAGES.npy OUT``.

Runs in an environment that has nncf, onnx and onnxruntime and nothing of Flyweight.
"""

import sys

import nncf
import numpy as np
import onnx

file, images, out = sys.argv[1:]
batches = [{"image": image[None]} for image in np.load(images)]
quantized = nncf.quantize(onnx.load(file), nncf.Dataset(batches), subset_size=len(batches))
onnx.save(quantized, out)
