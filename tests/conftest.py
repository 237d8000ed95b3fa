"""What every test shares: Keras's backend, and a network small enough to run in milliseconds."""

import pathlib
import platform
import random

import numpy as np
import pytest

from efficientdet import backend
from efficientdet.config import BackboneConfig, ModelConfig

backend.choose()  # before anything imports Keras

# Files that take longer than half a minute, the longest first. With several workers each file runs in one of them; one
# that began last would keep a single worker busy at the end.
_LONG = (
    "exporters/test_exports.py",
    "end_to_end/test_several_processes.py",
    "end_to_end/test_killed_run.py",
    "training/test_small_batches.py",
    "test_instruction_sets.py",
    "training/test_run.py",
    "training/distributed/test_replicas.py",
    "checkpoints/test_importing.py",
    "test_start_up.py",
    "formats/test_openvino.py",
    "benchmarks/test_accelerator.py",
    "end_to_end/test_slurm.py",
    "inference/test_detector.py",
    "training/distributed/test_packing.py",
    "end_to_end/test_ctrl_c.py",
    "data/formats/test_round_trip.py",
    "end_to_end/test_examples.py",
    "training/test_accumulation.py",
    "inference/test_prediction_again.py",
    "test_backends_agree.py",
    "model/test_efficientnet.py",
    "benchmarks/test_finetuning.py",
    "benchmarks/test_inference.py",
    "kernels/test_gpu_kernels.py",
    "benchmarks/test_input_pipeline.py",
    "training/trials/test_seeds.py",
    "training/test_explosion.py",
    "data/test_pipeline.py",
    "data/augment/test_policies.py",
    "model/test_golden.py",
    "test_precision.py",
)


def pytest_collection_modifyitems(items):
    """Puts the long files first; the others, and the tests of a file, stay in their order."""
    folder = pathlib.Path(__file__).parent
    places = {folder / name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Keeps what tests convert or fetch out of the user's cache, in processes of their own too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def quick_jax(tmp_path_factory):
    """Variables for a process on JAX that runs for seconds, nearly all of which would go into compiling.

    What is compiled for SSE4.2 alone, unoptimised and without fusion emitters is ready in a sixth of the time and
    computes the same; a step then takes longer, which does not matter for a few of them. What one process compiled the
    next one reads.
    """
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false"]
    if platform.machine() in ("x86_64", "AMD64"):
        flags.append("--xla_cpu_max_isa=SSE4_2")
    return {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(flags),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.getbasetemp() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture(scope="session")
def shared():
    """The folder beside the repository with photographs and reference values; not part of a release."""
    path = pathlib.Path(__file__).parents[2] / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.fixture(scope="session")
def tiny():
    """The smallest network with every part of the large ones."""
    return ModelConfig(
        name="tiny",
        image_size=(64, 96),
        num_classes=3,
        backbone=BackboneConfig(name="efficientnet-tiny", width=0.25, depth=0.25),
        feature_channels=8,
        num_cells=1,
        head_repeats=1,
        batch_norm_momentum=0.99,
    )


@pytest.fixture(scope="session")
def finding_weights(tiny, tmp_path_factory):
    """A file of weights that find something: random, with a class bias that lets many anchors through."""
    from efficientdet.model import weights
    from efficientdet.model.efficientdet import EfficientDet
    from efficientdet.structures import Category

    random.seed(0)  # Keras draws its seeds from here
    model = EfficientDet(tiny)
    rng = np.random.default_rng(0)
    arrays = {weights.variable_name(variable): variable.numpy() for variable in model.weights}
    for name, values in arrays.items():
        if "predict" in name and name.endswith("kernel"):
            arrays[name] = rng.normal(0, 0.5, values.shape).astype(np.float32)
    arrays["class_head/predict/pointwise/bias"] = np.full(27, -1.0, np.float32)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(
        path, arrays, tiny, (Category(id=5, name="cat"), Category(id=9, name="dog"), Category(id=11, name="cow"))
    )
    return path


@pytest.fixture
def rng():
    """A NumPy generator that starts the same in every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def uncompiled():
    """TensorFlow runs operations one by one: for a few steps, compiling would take longer than they do."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
