import numpy as np
import pytest

from accelnet.data import cifar10
from accelnet.errors import UserError

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def write(folder, rows=20):
    """Write six files of a few rows, and return their labels and images [N, 3, 32, 32]."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(10, dtype=np.uint8), rows * len(NAMES) // 10)
    images = generator.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8)
    table = np.concatenate([labels[:, None], images.reshape(len(labels), -1)], axis=1)
    for name, part in zip(NAMES, np.split(table, len(NAMES)), strict=True):
        (folder / name).write_bytes(part.tobytes())
    return labels, images


def test_every_image_keeps_its_label_and_its_colours(tmp_path):
    labels, images = write(tmp_path)
    data = cifar10(tmp_path)
    assert data.info["class_names"][3] == "cat" and data.info["num_classes"] == 10
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 90, "validation": 10, "test": 20}
    found = {image.tobytes(): label for image, label in zip(data.arrays["inputs"], data.arrays["targets"], strict=True)}
    assert len(found) == 120
    for label, (red, green, blue) in zip(labels, images, strict=True):
        assert found[np.stack([red, green, blue], axis=-1).tobytes()] == label


def test_the_published_test_images_are_the_test_split_and_each_class_has_its_share_of_validation(tmp_path):
    labels, _ = write(tmp_path)
    first, other = cifar10(tmp_path), cifar10(tmp_path, seed=1)
    targets, splits = first.arrays["targets"], first.splits
    assert targets[splits["test"].start :].tolist() == labels[100:].tolist()
    validation = targets[splits["validation"].start : splits["validation"].stop]
    assert sorted(validation.tolist()) == list(range(10))
    assert first.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-1], lambda content: bytes([10]) + content[1:]]
)
def test_a_file_that_is_damaged_is_named(tmp_path, damage):
    write(tmp_path)
    path = tmp_path / "data_batch_4.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"data_batch_4\.bin .*again"):
        cifar10(tmp_path)


def test_a_file_that_is_missing_is_named(tmp_path):
    write(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(UserError, match=r"test_batch\.bin cannot be read: No such file"):
        cifar10(tmp_path)
