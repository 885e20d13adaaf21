"""A trained generator as a TensorRT engine, for the kind of GPU and the version of TensorRT that it is built with.

Not tried: nothing this project was made on had a GPU. It follows NVIDIA's Python interface of TensorRT 10 and 11, and
what it builds is compared with the model before it gets its name.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from src.errors import UserError
from src.export.agreement import Draw, check_agreement, examples
from src.models.image_model import ImageModel
from src.models.request import Request
from src.sampling.sampler import About

SMALLEST, USUAL, LARGEST = 1, 64, 256  # images at a time: what the engine takes, and what it is made fast for


def check_tensorrt() -> None:
    """Refuses what cannot work here.

    Raises:
        UserError: TensorRT or a GPU is missing.
    """
    if find_spec("tensorrt") is None:
        raise UserError(
            "formats asks for tensorrt, which is not installed: pip install tensorrt where there is an NVIDIA GPU, or"
            " leave it out"
        )
    if not torch.cuda.is_available():
        raise UserError(
            "formats asks for tensorrt, which builds an engine on the GPU that is to run it, but torch finds none here:"
            " run this where there is one, or leave it out"
        )


def build_engine(source: Path, path: Path, model: ImageModel, about: About) -> float:
    """Builds an engine from an exported ONNX file, and tries it.

    Its inputs are `noise`, float32 [N, ...], and `labels`, int64 [N], its output is `images`, float32 [N, C, H, W] in
    [-1, 1]; N is 1 to 256. It does not draw between classes. It uses TF32 where the GPU has it.

    Args:
        source: what `export_generator` wrote.
        path: the engine's file.
        model: what the ONNX file was exported from.
        about: what is known of it.

    Returns:
        The largest difference between an image that the engine draws and the model's, both in [-1, 1].

    Raises:
        ValueError: TensorRT cannot build it, or it draws other images.
    """
    import onnx
    import tensorrt

    graph = onnx.load_model(source)
    del graph.graph.input[2:]  # these may be left out, and become constants
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network()
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph.SerializeToString()):
        raise ValueError(f"TensorRT cannot read the generator: {parser.get_error(0)}")
    profile = builder.create_optimization_profile()
    condition = ("prompts", model.condition_shape) if about.reads_text else ("labels", ())
    for name, rest in (("noise", about.noise_shape), condition):
        profile.set_shape(name, *((n, *rest) for n in (SMALLEST, USUAL, LARGEST)))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT cannot build an engine of the generator: what it said is above")
    path.write_bytes(engine)

    return check_agreement(engine_run(path), model, about.weights == "ema", examples(model)[:1], coarse=True)


def engine_run(path: Path) -> Draw:
    """What draws with an engine of one's own."""
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()

    def run(request: Request[np.ndarray]) -> np.ndarray:
        tensors = {
            "noise": torch.from_numpy(request.noise).cuda(),
            ("prompts" if request.condition.ndim > 1 else "labels"): torch.from_numpy(request.condition).cuda(),
        }
        for name, tensor in tensors.items():
            context.set_input_shape(name, tuple(tensor.shape))
        tensors["images"] = torch.empty(tuple(context.get_tensor_shape("images")), device="cuda")
        for name, tensor in tensors.items():
            context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.Stream()
        torch.cuda.synchronize()  # the inputs have arrived
        context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        return tensors["images"].cpu().numpy()

    return run
