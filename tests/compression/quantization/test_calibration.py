"""Ranges against ONNX Runtime's own, NumPy and the formula, then that memory stays bounded, then what is refused."""

import tracemalloc

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, create_calibrator

from pipeline.compression.quantization import calibration
from pipeline.compression.quantization.calibration import Images, lowest_divergence, ranges
from pipeline.errors import ModelError
from pipeline.export.preprocessing import NORMALISED, network_of, normalisation_of


@pytest.fixture(scope="module")
def network(float_file):
    return network_of(onnx.load(float_file))


@pytest.fixture(scope="module")
def images(float_file, digits):
    return Images(digits[0][:100], normalisation_of(onnx.load(float_file)))


@pytest.fixture(scope="module")
def activations(network, images):
    """Name -> all values on all images."""
    return calibration._Watched(network)(next(images.batches(100)))


def test_minmax_is_what_onnx_runtime_finds(network, images, tmp_path):
    class Reader(CalibrationDataReader):
        batches = iter([{NORMALISED: batch} for batch in images.batches(32)])

        def get_next(self):
            return next(self.batches, None)

    onnx.save(onnx.shape_inference.infer_shapes(network), tmp_path / "float.onnx")
    calibrator = create_calibrator(tmp_path / "float.onnx", None, str(tmp_path / "augmented.onnx"))
    calibrator.collect_data(Reader())
    found = ranges(network, images)
    expected = {name: limits.range_value for name, limits in calibrator.compute_data().items()}
    assert set(expected) <= set(found)
    for name, limits in expected.items():
        np.testing.assert_allclose(found[name], np.ravel(limits), rtol=1e-5, atol=1e-6)


def test_a_percentile_holds_that_share_of_the_values(network, images, activations):
    found = ranges(network, images, "percentile", 99.0)
    for name, values in activations.items():
        low, high = found[name]
        magnitudes = np.abs(values)
        cut = max(-low, high)
        width = magnitudes.max() / calibration.BINS
        assert (
            np.quantile(magnitudes, 0.99, method="lower") - 1e-6
            <= cut
            <= np.quantile(magnitudes, 0.99, method="higher") + 2 * width
        )
        assert values.min() <= low <= high <= values.max()


def test_the_divergence_is_that_of_the_formula():
    histogram = np.random.default_rng(0).poisson(3, 320).astype(np.int64)
    kept, total = 256, histogram.sum()
    p = [count / total for count in histogram[:kept]]
    p[-1] += histogram[kept:].sum() / total
    q = []
    for step in range(128):
        bins = histogram[2 * step : 2 * step + 2]
        filled = (bins > 0).sum()
        q += [bins.sum() / filled if count else 0.0 for count in bins]
    q = [value / sum(q) for value in q]
    expected = sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a)
    assert calibration._divergence(histogram, kept, total) == pytest.approx(expected)


def test_entropy_cuts_a_lonely_outlier_off_and_keeps_what_is_even():
    values = np.abs(np.random.default_rng(0).normal(size=200_000))
    with_outlier = np.histogram(np.append(values, 100.0), calibration.BINS, (0, 100))[0]
    assert lowest_divergence(with_outlier) / calibration.BINS * 100 < 15
    assert lowest_divergence(np.full(calibration.BINS, 100)) == calibration.BINS
    assert lowest_divergence(np.zeros(calibration.BINS, np.int64)) == calibration.BINS


@pytest.mark.integration
@pytest.mark.parametrize(
    "method", [*(pytest.param(one, marks=pytest.mark.extra) for one in ("minmax", "percentile")), "entropy"]
)
def test_memory_does_not_grow_with_the_number_of_images(method, network, images, digits):
    def peak(count):
        many = Images(digits[0][np.arange(count) % 1000], images.normalisation)
        tracemalloc.start()
        ranges(network, many, method)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(32)
    assert peak(320) < 1.2 * peak(64)


def test_large_activations_are_looked_at_in_smaller_batches(monkeypatch, network, images):
    sizes = []
    original = calibration._Watched.__call__

    def watched(self, batch):
        sizes.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(calibration._Watched, "__call__", watched)
    expected = ranges(network, images)
    assert sizes == [1, 32, 32, 32, 4]
    one_image = sum(
        values.nbytes for values in original(calibration._Watched(network), next(images.batches(1))).values()
    )
    monkeypatch.setattr(calibration, "BYTES", 50 * one_image // 10)
    sizes.clear()
    found = ranges(network, images)
    assert max(sizes) == 5
    for name, limits in expected.items():
        np.testing.assert_allclose(found[name], limits, rtol=1e-5, atol=1e-6)


def test_a_model_that_gives_nan_is_refused(network, images):
    broken = onnx.ModelProto.FromString(network.SerializeToString())
    kernel = next(tensor for tensor in broken.graph.initializer if len(tensor.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(kernel.dims), np.nan, np.float32), kernel.name))
    with pytest.raises(ModelError, match="is NaN or infinite on the calibration images: the float model is broken"):
        ranges(broken, images)
