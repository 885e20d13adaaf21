"""An exported generator with 8-bit weights and activations: about a quarter of the size."""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from src.models.request import Request
from src.sampling.onnx_sampler import OnnxSampler
from src.sampling.sampler import BLOCK, Noise, Sampler

# What has weights worth shrinking. All else stays float32: the sums and products of conditional norms are cheap.
QUANTISED = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
SMALL = 0.1  # share of the weights, below which the last layer stays float32, too
N_COMPARED = 256
# Mean difference of images in [-1, 1] from those of the float32 file: beyond it they are other images. How good they
# are within it is measured, not assumed: see task=evaluate.
LARGEST_MEAN = 0.1


def quantise(source: Path, path: Path, images: int, seed: int, more: Mapping[str, str]) -> tuple[float, float]:
    """Writes an int8 version of an exported ONNX file, and tries it.

    Weights are rounded to 7 bits, each output channel on a scale of its own; activations to 8 bits, on scales for what
    is seen while `images` images of all classes are drawn (Jacob et al. 2018), but for the farthest 0.001 %. An eighth
    bit of the weights could overflow the sums of x86 processors without VNNI, which then would draw other images.

    What the last layer puts out goes far beyond what the image shows of it, -1 or 1, where there are plain backgrounds:
    rounded on that scale they become blotchy. It stays float32, unless it holds much of the weights and images are
    nearly the same without.

    Args:
        source: what `export_generator` wrote.
        path: the new file.
        images: drawn to find the scales.
        seed: seed of their noise.
        more: metadata to add to that of the source, or to change there.

    Returns:
        The largest and the mean absolute difference between the images in [-1, 1] that the two files draw.

    Raises:
        ValueError: the new file draws other images.
        ImportError: onnx or onnxruntime is missing.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    exact = OnnxSampler(source)
    request = Request(Noise(exact.about.noise_shape, seed + 1)(N_COMPARED), exact.about.examples(N_COMPARED))
    expected = exact.run(request)
    model = onnx.load_model(source)
    metadata = {each.key: each.value for each in model.metadata_props} | dict(more)
    weights = {each.name: math.prod(each.dims) for each in model.graph.initializer}
    last = [node for node in model.graph.node if node.op_type in QUANTISED][-1:]
    small = sum(weights.get(node.input[1], 0) for node in last) < SMALL * sum(weights.values())
    for kept in [last] if small else [[], last]:
        model = onnx.load_model(source)  # again, as quantising changes it
        add_pre_process_metadata(model)  # the exporter has done what would be done then
        onnxruntime.set_default_logger_severity(3)  # it would warn that two inputs have a value already
        with contextlib.redirect_stdout(io.StringIO()):  # it tells each step
            quantize_static(
                model,
                path,
                Calibration(exact, images, seed),
                op_types_to_quantize=QUANTISED,
                nodes_to_exclude=[node.name for node in kept],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                # A block at a time: else it would keep all activations of all images.
                extra_options={"CalibStridedMinMax": 1, "MatMulConstBOnly": True},
            )
        onnxruntime.set_default_logger_severity(2)
        quantised = onnx.load_model(path)
        onnx.helper.set_model_props(quantised, metadata)
        onnx.save_model(quantised, path)
        difference = np.abs(OnnxSampler(path).run(request) - expected)
        if difference.mean() <= LARGEST_MEAN:
            return float(difference.max()), float(difference.mean())
    raise ValueError(
        f"the int8 version draws other images (they differ by {difference.mean():.2f} on average): leave int8 out of"
        " formats"
    )


class Calibration:
    """What ONNX Runtime draws to find the scales, as its `CalibrationDataReader`: all classes in turn, in blocks.

    Args:
        sampler: what is quantised.
        images: how many.
        seed: seed of the noise.
    """

    def __init__(self, sampler: Sampler, images: int, seed: int) -> None:
        about = sampler.about
        self._inputs = {"prompts" if about.reads_text else "labels": about.condition(about.examples(images))}
        self._inputs["noise"] = Noise(about.noise_shape, seed)(images)
        self._blocks: Iterator[int] = iter(())

    def __len__(self) -> int:
        return math.ceil(len(self._inputs["noise"]) / BLOCK)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Which blocks come next."""
        self._blocks = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next block's inputs; None: there are no more."""
        for block in self._blocks:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            return {name: values[part] for name, values in self._inputs.items()}
        return None
