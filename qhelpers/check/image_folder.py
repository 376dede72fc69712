"""A folder of images as a loader: the usual preprocessing of ImageNet, and labels if each class has a folder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader
from torchvision.transforms import v2

from qhelpers.check.calls import Call
from qhelpers.check.errors import DataError


class _Plain(Dataset[Tensor]):
    """Images that lie in one folder."""

    def __init__(self, paths: list[Path], transform: v2.Compose) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(default_loader(str(self.paths[index])))
        return image


def images_in(folder: str | Path, example: Call | None = None, batch: int = 16) -> tuple[DataLoader[Any], str]:
    """A loader of the images in a folder, and a note that says how they were read.

    Their order is shuffled but always the same, so that any first part of them has all classes.

    Args:
        folder: with images, or with one folder of images for each class.
        example: for the size of the images; 224 x 224 if None.

    Raises:
        DataError: if there is no such folder, no image in it, or the example is no batch of RGB images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    shape = example.shapes[0] if example else (1, 3, 224, 224)
    if len(shape) != 4 or shape[1] != 3:
        raise DataError(f"A folder gives RGB images, (n, 3, height, width); the example has the shape {shape}.")
    prepare = _prepare(shape[2], shape[3])
    plain = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    classes = [] if plain else [path for path in folder.iterdir() if path.is_dir()]
    found: Dataset[Any] = _Plain(plain, prepare)
    if classes:
        found = ImageFolder(str(folder), prepare, allow_empty=True)
    n = len(found)  # type: ignore[arg-type]
    if n == 0:
        raise DataError(f"There is no image in {folder}: no {', '.join(IMG_EXTENSIONS[:4])} …, nor folders with some.")
    note = (
        f"{folder}: {n} images were scaled, cut to {shape[2]} x {shape[3]} and normalized as usual for ImageNet; "
        + (f"its {len(classes)} folders are the classes 0 to {len(classes) - 1}, in alphabetical order" * bool(classes))
        + ("they have no labels" * bool(plain))
        + ". If the model was trained otherwise, give a DataLoader."
    )
    fixed = torch.Generator().manual_seed(0)
    return DataLoader(Subset(found, torch.randperm(n, generator=fixed).tolist()), batch, generator=fixed), note


def _prepare(height: int, width: int) -> v2.Compose:
    """Source: torchvision's ``transforms._presets.ImageClassification``: 256 for 224."""
    steps = [v2.Resize(round(max(height, width) * 256 / 224)), v2.CenterCrop((height, width)), v2.ToImage()]
    numbers = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    return v2.Compose([*steps, *numbers])
