"""Three real sources of handwritten digits as three domains: MNIST [1], USPS [2] and scikit-learn's digits [3].

The first two are folders `<domain>/<digit>/*.png`; the third is bundled with scikit-learn. All are light ink on black
and of 28, 16 and 8 pixels a side: they differ in pen, framing and blur, so a digit's domain shows.

[1] Y. LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86, 1998.
[2] J. J. Hull, A database for handwritten text recognition research, IEEE TPAMI 16, 1994.
[3] E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

import numpy as np
import torch
from PIL import Image

from fedbayes.data.datasets import GIVEN_NONE, ImageSet
from fedbayes.data.pixels import square
from fedbayes.data.sources.bundled_digits import CLASSES, bundled_digits
from fedbayes.data.sources.image_folder import image_folder

FOLDERS = ("mnist", "usps")
BUNDLED = "digits"


def three_digits(root: str, image_size: int, on_error: str = "raise", source: str | None = None) -> ImageSet:
    """Read the two folders and append scikit-learn's 1,797 digits.

    Args:
        root: the folder that holds `mnist/` and `usps/`; it may hold more, which is ignored.
        image_size: side of the images, in pixels.
        on_error: as for `image_folder`.
        source: where to get the folders, for the error of a missing one.

    Raises:
        ConfigError: if `image_size` or `on_error` cannot work.
        DataError: if a folder is missing or damaged.
    """
    folders = image_folder(root, image_size, on_error, CLASSES, FOLDERS, others="ignore", source=source)
    ink, labels = bundled_digits()
    grey = np.round(ink * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    pixels = torch.from_numpy(np.stack([square(Image.fromarray(digit), image_size) for digit in grey]))
    count = len(pixels)
    return ImageSet(
        images=torch.cat([folders.images, pixels]),
        labels=torch.cat([folders.labels, torch.from_numpy(labels)]),
        domains=torch.cat([folders.domains, torch.full((count,), len(FOLDERS), dtype=torch.int64)]),
        classes=CLASSES,
        domain_names=(*FOLDERS, BUNDLED),
        given_split=torch.cat([folders.given_split, torch.full((count,), GIVEN_NONE, dtype=torch.int8)]),
        names=folders.names + tuple(f"{BUNDLED}/{i}" for i in range(count)),
    )
