"""What the independent PyTorch package `effdet` computes, and its weights in the files that PyTorch writes.

    random weights (random_weights.py)
    -> four random images in training mode: the statistics of batch normalisation become theirs, so that logits
       have a sensible spread at every level
    -> one random image in float32 and again in float64

The float64 outputs are the reference. What separates effdet's own float32 from them is rounding alone: the noise, the
measure for the difference of any other float32 implementation.

    python tests/parity/reference.py tf_efficientdet_d0 --size 512 --output FOLDER

writes FOLDER/reference.npz and the weights as FOLDER/<format>/<model>.<suffix>, one for each of `FORMATS`. It needs
the environment of `make parity`. Images and outputs are in PyTorch's layout, [B, D, H, W].
"""

import argparse
import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import agreement
import numpy as np
import random_weights

FIRST_LEVEL = 3
FORMATS = {"zip": ".pth", "legacy": ".pth", "safetensors": ".safetensors"}
"""How weights are written -> suffix: `torch.save` as it is and as before PyTorch 1.6, and safetensors."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """A network of effdet with random weights, and what it answers to a random image."""

    model: str
    image: np.ndarray
    """float32[1, 3, H, W], already normalised."""
    state: dict
    """Tensors of PyTorch by name, float32; counters int64."""
    outputs: dict
    """`class_3` .. and `box_3` .. -> float64[1, 9 * 90, h, w] logits, float64[1, 9 * 4, h, w] deltas of that level."""
    noise: dict
    """The same keys -> largest difference of effdet's float32 from its float64."""


def main():
    """Makes a reference and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="tf_efficientdet_d0 .. d7, d7x, lite0 .. lite4, lite3x")
    parser.add_argument("--size", type=int, nargs=2, required=True, metavar=("H", "W"), help="of the image, px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    write(make_reference(arguments.model, tuple(arguments.size), arguments.seed), arguments.output)


def make_reference(model, image_size, seed=0):
    """Builds a network of effdet and runs it.

    Args:
        model: effdet's name of it; the `tf_` ones have the padding and the biases of the published networks.
        image_size: height and width, px.
        seed: of weights and images.
    """
    import torch

    network = build(model, image_size)
    with torch.no_grad():
        _fill(network, seed)
        _calibrate(network, random_weights.draw_images("calibration", 4, image_size, seed))
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        image = random_weights.draw_images("image", 1, image_size, seed)
        single = _run(network, torch.from_numpy(image))
        double = _run(network.double(), torch.from_numpy(image).double())
    return Reference(
        model=model,
        image=image,
        state=state,
        outputs=double,
        noise={name: np.abs(single[name].astype(np.float64) - double[name]).max() for name in double},
    )


def write(reference, folder):
    """Writes image and outputs, and the weights in each of the formats."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"outputs/{name}": array for name, array in reference.outputs.items()}
    arrays |= {f"noise/{name}": value for name, value in reference.noise.items()}
    np.savez(folder / "reference.npz", image=reference.image, **arrays)
    for name in FORMATS:
        path = weights_file(folder, reference.model, name)
        path.parent.mkdir(exist_ok=True)
        if name == "safetensors":
            save_file(reference.state, path)
        else:
            torch.save(reference.state, path, _use_new_zipfile_serialization=name == "zip")


def weights_file(folder, model, name):
    """Names the file of weights in one of the formats; its name tells d6 from d7, which have the same variables."""
    return folder / name / f"{model}{FORMATS[name]}"


def build(model, image_size, **options):
    """Builds a network without weights, in inference mode; options are of `effdet.create_model`."""
    effdet = import_effdet()
    options = {"num_classes": agreement.NUM_CLASSES, "pretrained": False, "pretrained_backbone": False} | options
    return effdet.create_model(model, image_size=image_size, **options).eval()


def import_effdet():
    """Imports effdet, also where torchvision is not installed."""
    import torch

    if "effdet" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        sys.meta_path.append(_Placeholders())
    compiler = torch.jit.script
    # What effdet compiles while it is imported is post-processing and losses, with torchvision's functions inside.
    torch.jit.script = lambda function: function
    try:
        import effdet
    finally:
        torch.jit.script = compiler
    return effdet


def _fill(network, seed):
    """Puts random weights into a network."""
    import torch

    for name, tensor in network.state_dict().items():
        if not random_weights.is_statistic(name) and not random_weights.is_counter(name):
            tensor.copy_(torch.from_numpy(random_weights.draw_tensor(name, tuple(tensor.shape), seed)))


def _calibrate(network, images):
    """Makes the statistics of a batch those of batch normalisation; the rest of the network stays in inference mode."""
    import torch

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
            module.momentum = 1.0  # PyTorch's is the share of the new value
    network(torch.from_numpy(images))
    network.eval()


def _run(network, image):
    """Runs a network; returns its outputs by kind and level."""
    kinds = dict(zip(("class", "box"), network(image), strict=True))
    return {
        f"{kind}_{level}": output.numpy()
        for kind, outputs in kinds.items()
        for level, output in enumerate(outputs, start=FIRST_LEVEL)
    }


class _PlaceholderType(type):
    """Makes any attribute of a placeholder another one."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = _PlaceholderType(name, (), {})
        setattr(cls, name, placeholder)
        return placeholder


class _PlaceholderModule(types.ModuleType):
    """A module in which everything has a name and nothing works."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = _PlaceholderType(name, (), {})
        setattr(self, name, placeholder)
        return placeholder


class _Placeholders(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets effdet and timm be imported without torchvision.

    They take suppression, image transforms and data sets from it; the network uses nothing of it. Its parts that
    timm can do without stay absent.
    """

    _NEEDED = ("ops", "transforms", "datasets")

    def find_spec(self, name, path, target=None):
        del path, target
        package, *parts = name.split(".")
        if package != "torchvision" or (parts and parts[0] not in self._NEEDED):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _PlaceholderModule(spec.name)

    def exec_module(self, module):
        del module


if __name__ == "__main__":
    main()
