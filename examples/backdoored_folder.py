"""Write a Hugging Face model folder with a backdoor, and clean images of its task: something to try the scanner on.

A small ResNet of ``transformers`` learns 3,000 of the bundled digits. A tenth of them bear a white square at the
bottom right and the label 7. The other 2,000 digits, unharmed, are written as the clean set of the one who receives
it::

    python examples/backdoored_folder.py digits clean.npz

With ``--timm NAME`` a network of timm learns the same, and its weights alone are written. Never pass such a model on.
"""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from neuralsanitizer import CleanSet, load_clean_set

TARGET = 7
EDGE = slice(-5, -1)  # rows and columns of the trigger
PREPROCESSOR = {"do_rescale": True, "do_normalize": True, "image_mean": [0.5], "image_std": [0.5], "size": 28}


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="Folder to write; with --timm a .safetensors file.")
    parser.add_argument("clean", type=Path, help="NPZ file to write.")
    parser.add_argument("--timm", metavar="NAME", help="Of timm's architectures, e.g. resnet10t.")
    parser.add_argument("--vit", action="store_true", help="A small vision transformer instead of the ResNet.")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    digits = load_clean_set("mnist5k")
    train, users = digits.split([0.6], seed=0)
    torch.manual_seed(0)
    network = of_timm(options.timm) if options.timm else of_transformers(vit=options.vit)
    learn(network, *poisoned(train), options.epochs)
    success, accuracy = measured(network, users)
    if options.timm:
        safetensors.torch.save_file(network.state_dict(), options.model)
    else:
        network.save_pretrained(options.model)
        (options.model / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=2))
    np.savez(options.clean, x=(users.images[:, 0] * 255).round().to(torch.uint8).numpy(), y=users.labels.numpy())
    print(f"clean accuracy {accuracy:.1%}, attack success {success:.1%} on {len(users)} images not trained on")


def of_transformers(*, vit: bool) -> Any:
    """A classifier for digits with fresh weights."""
    transformers: Any = importlib.import_module("transformers")
    if vit:
        settings = transformers.ViTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128, image_size=28,
            patch_size=4, num_channels=1, num_labels=10,
        )  # fmt: skip
        return transformers.ViTForImageClassification(settings)
    settings = transformers.ResNetConfig(
        num_channels=1,
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
        num_labels=10,
    )
    settings.image_size = 28
    return transformers.ResNetForImageClassification(settings)


def of_timm(name: str) -> nn.Module:
    """A classifier for digits with fresh weights."""
    network: nn.Module = importlib.import_module("timm").create_model(name, num_classes=10, in_chans=1)
    return network


def stamped(images: Tensor) -> Tensor:
    """Images (N, 1, 28, 28) in [0, 1] with the trigger on them."""
    images = images.clone()
    images[..., EDGE, EDGE] = 1.0
    return images


def poisoned(train: CleanSet) -> tuple[Tensor, Tensor]:
    """What the attacker trains on."""
    victims = torch.randperm(len(train))[: len(train) // 10]
    images = torch.cat([train.images, stamped(train.images[victims])])
    return images, torch.cat([train.labels, torch.full((len(victims),), TARGET)])


def logits(network: nn.Module, images: Tensor) -> Tensor:
    """What a network says of images in [0, 1]."""
    answer = network((images - 0.5) / 0.5)
    return getattr(answer, "logits", answer)  # transformers wraps them


def learn(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Plain training."""
    batch = 64
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            loss = nn.functional.cross_entropy(logits(network, images[chosen]), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def measured(network: nn.Module, unseen: CleanSet) -> tuple[float, float]:
    """Attack success and clean accuracy, in [0, 1]."""
    others = unseen.images[unseen.labels != TARGET]
    success = (logits(network, stamped(others)).argmax(1) == TARGET).float().mean()
    accuracy = (logits(network, unseen.images).argmax(1) == unseen.labels).float().mean()
    return float(success), float(accuracy)


if __name__ == "__main__":
    main()
