"""The handwritten digits that scikit-learn bundles [1].

[1] E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

CLASSES = tuple("0123456789")


@lru_cache(maxsize=1)  # the runs of a sweep share it
def bundled_digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images `(1797, 8, 8)`, ink from 0 to 16, and labels `(1797,)`, as `sklearn.datasets.load_digits` does.

    The file is read without the package, whose import takes a second and 100 MB.
    """
    package = find_spec("sklearn")
    assert package is not None, "a dependency"
    table = np.loadtxt(Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
