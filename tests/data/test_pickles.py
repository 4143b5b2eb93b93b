import pickle

import numpy as np
import pytest

from psa.data import open_dataset
from psa.errors import DataError


@pytest.mark.parametrize("name", ["lmdb/data.mdb", "a.pkl", "a.PICKLE", "a.pt", "metadata.npy"])
def test_pickles_are_refused_with_why_and_what_to_do(tmp_path, name):
    class Trap:
        def __reduce__(self):
            return (type(tmp_path).write_text, (tmp_path / "sprung", "sprung"))

    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith("npy"):
        np.save(path, np.array([None], object), allow_pickle=True)
    else:
        path.write_bytes(pickle.dumps(Trap()))
    source = path.parent if name.startswith("lmdb") else path
    message = (
        r": expected images .*, got pickled Python objects, which are never loaded, since loading .*; save the images"
    )
    with pytest.raises(DataError, match=rf"{source.name}{message}"):
        open_dataset(source)
    assert not (tmp_path / "sprung").exists()
