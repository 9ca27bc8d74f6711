"""Images and labels that are held in memory, as arrays of the user's, and what they must be.

Training, evaluation, prediction and `pbr data check` take them through the same checks.
"""

import numpy as np
from jaxtyping import Bool, Int, Num

from pbr_jax.data.records import ImageRecord

Images = Num[np.ndarray, "N H W C"]
Labels = Int[np.ndarray, " N"]


class ArrayRecords:
    """Images, uint8 in 0..255 or floats in [0, 1], and their labels from 0, as `Records`.

    Raises:
      ValueError: with all that is wrong with the arrays; names the split.
    """

    def __init__(
        self, name: str, images: Images, labels: Labels, num_classes: int | None = None
    ) -> None:
        faults = image_faults(f"{name} images", images)
        faults += _label_faults(name, labels, len(images) if images.ndim else 0, num_classes)
        if not faults and not (good := usable(images)).all():
            # Where nothing would be left, to leave them out is no advice.
            skip = ", or leave them out with data.on_error=skip" if good.any() else ""
            faults.append(
                f"{name} images have NaN or infinity in {(~good).sum()} of {len(images)} examples, "
                f"first in example {int(np.argmin(good))}: repair them{skip}"
            )
        if faults:
            raise ValueError("\n".join(faults))
        self.name, self.images, self.labels = name, images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageRecord:
        name = f"{self.name} example {index}"
        return ImageRecord(self.images[index], int(self.labels[index]), name)


def image_faults(name: str, images: np.ndarray) -> list[str]:
    """Lines that say why an array as a whole is not of images, with what cures it; none if it is.

    It must be [N, height, width, channels] of uint8, or of floats in [0, 1]. Single images may
    still have NaN or infinity, see `usable`.
    """
    if images.dtype.kind not in "buif":
        return [f"{name} are {images.dtype}: must be uint8, or floats in [0, 1]"]
    faults = []
    if (advice := _layout(images.shape)) is not None:
        shape = f"{name} have shape {images.shape}"
        faults.append(f"{shape}: must be [N, height, width, channels]{advice}")
    if images.size == 0:
        return faults or [f"{name} are empty: shape {images.shape}; write the array again"]
    if images.dtype == np.uint8:  # whose values are all good
        return faults
    floats = images.dtype.kind == "f"
    finite = images[np.isfinite(images)] if floats and not np.isfinite(images).all() else images
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if floats and low >= 0 and high <= 1:
        return faults
    if floats:
        what = f"lie in [{low:.4g}, {high:.4g}]: floats must lie in [0, 1]"
    else:
        what = f"are {images.dtype}: must be uint8, or floats in [0, 1]"
    return [*faults, f"{name} {what}; {_scale(images.dtype, float(low), float(high))}"]


def _layout(shape: tuple[int, ...]) -> str | None:
    """Advice for a shape that is not [N, H, W, C], empty where there is none; None if it is."""
    if len(shape) == 3 and shape[-1] in (1, 3):
        return "; images[None] makes one image of it, images[..., None] grey ones"
    if len(shape) == 3:
        return "; images[..., None] adds the channel of grey images"
    if len(shape) == 2 and 0 < shape[1] == int(shape[1] ** 0.5) ** 2:
        side = int(shape[1] ** 0.5)
        return f"; images.reshape(-1, {side}, {side}, 1) makes grey images of rows of pixels"
    if len(shape) != 4:
        return ""
    # Channels first: no image is three pixels high and has as many channels as a side has pixels.
    _, first, height, width = shape
    if first in (1, 3, 4) and width > 4 and (height == width or width > 16):
        return "; images.transpose(0, 2, 3, 1) puts the channels last"
    return None


def _scale(dtype: np.dtype, low: float, high: float) -> str:
    """What makes sound images of values in [low, high]."""
    if low < 0:
        half = "(images + 1) / 2" if low >= -1 and high <= 1 else "images * deviation + mean"
        return f"undo the normalisation, such as with {half}"
    if high <= 1:
        return "store them as images.astype(np.float32)"
    if high <= 255:
        rounded = "images.round()" if dtype.kind == "f" else "images"
        return f"store them as {rounded}.astype(np.uint8)"
    most = 65535 if high <= 65535 else f"{high:.6g}"
    return f"store them as (images / {most}).astype(np.float32)"


def usable(images: Images) -> Bool[np.ndarray, " N"]:
    """Which images are without NaN and infinity."""
    if images.dtype.kind != "f":
        return np.ones(len(images), bool)
    return np.isfinite(images).all(axis=(1, 2, 3))


def _label_faults(name: str, labels: np.ndarray, count: int, num_classes: int | None) -> list[str]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return [
            f"{name} labels are {labels.dtype} of shape {labels.shape}: must be integers of "
            f"shape [N]{_label_advice(labels)}"
        ]
    if count != len(labels):
        return [f"{name} has {count} images and {len(labels)} labels: must agree"]
    # Limits come last: they mean nothing before the shapes agree.
    low, high = (labels.min(), labels.max()) if count else (0, 0)
    if low >= 0 and (num_classes is None or high < num_classes):
        return []
    wanted = "0 or more" if num_classes is None else f"in 0..{num_classes - 1}"
    row = int(np.argmin(labels) if low < 0 else np.argmax(labels))
    return [f"{name} label {labels[row]} of example {row}: must be {wanted}"]


def _label_advice(labels: np.ndarray) -> str:
    """What makes numbers of classes of labels that are none, as an addition to a message."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "; labels[:, 0] are"
    if labels.ndim == 1 and labels.dtype.kind in "US":
        return f"; {NUMBER_THEM}"
    if labels.dtype.kind not in "buif" or not labels.size:
        return ""
    if labels.ndim == 2 and (labels.sum(axis=1) == 1).all() and (labels.max(axis=1) == 1).all():
        return "; labels.argmax(axis=1) makes them of one-hot rows"
    if labels.ndim != 1:
        return ""
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels % 1 == 0).all()):
        return "; values with a fraction, or NaN, are no classes"
    return "; labels.astype(np.int64) are"


NUMBER_THEM = (
    "number the classes with class_names, train_labels = np.unique(train_labels, "
    "return_inverse=True) and test_labels = np.searchsorted(class_names, test_labels), and store "
    "class_names too"
)
"""How classes that have names or numbers of their own are numbered from 0."""
