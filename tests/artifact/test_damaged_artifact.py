"""Artifacts that are damaged, replaced, newer or none."""

import json
import zipfile

import pytest

import accelnet as an
from accelnet.artifact.bundle import FORMAT, MANIFEST, read_bundle, write_bundle
from accelnet.errors import UserError
from tests.damage import damaged, read_or_message

PARTS = ("schema.json", "metrics.json", "config.json", "model.json")
ENTRIES = ("README.md", *PARTS, "program.jax", "weights.safetensors", MANIFEST)


@pytest.mark.parametrize("name", ENTRIES)
def test_damage_of_an_entry_names_it(mlp, tmp_path, name):
    content = bytearray(mlp[1].read_bytes())
    with zipfile.ZipFile(mlp[1]) as archive:
        assert set(archive.namelist()) == set(ENTRIES)
        entry = archive.getinfo(name)
    start = entry.header_offset + 30 + len(name)
    content[start + entry.file_size // 2] ^= 1
    path = tmp_path / "a.accelnet"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.accelnet is damaged: {name} is not what was written"):
        an.load(path)


@pytest.mark.parametrize("name", ENTRIES[:-1])
def test_an_entry_that_was_replaced_or_removed_is_named(mlp, tmp_path, name):
    with zipfile.ZipFile(mlp[1]) as archive:
        entries = {one: archive.read(one) for one in archive.namelist()}
    for replacement, words in ((b"{}", "is not what was written"), (None, "is missing")):
        path = tmp_path / "a.accelnet"
        with zipfile.ZipFile(path, "w") as archive:
            for one, content in entries.items():
                if one != name or replacement is not None:
                    archive.writestr(one, content if one != name else replacement)
        with pytest.raises(UserError, match=rf"a\.accelnet is damaged: {name} {words}"):
            an.load(path)


def test_what_is_no_artifact_is_one_message(mlp, tmp_path):
    path, whole = tmp_path / "a.accelnet", mlp[1].read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:-1], whole[10:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.accelnet is (no artifact, or cut short|damaged)"):
            an.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "x")
    with pytest.raises(UserError, match=r"a\.accelnet is a zip, but no artifact: it has no manifest\.json"):
        an.load(path)
    write_bundle(path, {"README.md": b"x"}, "1.0")
    with pytest.raises(UserError, match=r"is no artifact of a model: it has no schema\.json"):
        an.load(path)
    with pytest.raises(UserError, match=r"holds no model\.accelnet: the verb predict writes one"):
        an.load(tmp_path)


def test_a_newer_format_is_named(mlp, tmp_path):
    path = tmp_path / "a.accelnet"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MANIFEST, json.dumps({"format": FORMAT + 1, "accelnet": "9.1", "other": []}))
    with pytest.raises(UserError, match=rf"has format {FORMAT + 1}, of accelnet 9\.1, expected {FORMAT} at most"):
        an.load(path)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_another_form_is_one_message(mlp, tmp_path, name):
    entries, path = read_bundle(mlp[1]), tmp_path / "a.accelnet"
    for values in damaged(json.loads(entries[name])):
        write_bundle(path, {**entries, name: json.dumps(values).encode()}, "1.0")
        model, message = read_or_message(lambda: an.load(path))
        assert (model is None) == (message is not None)


def test_a_path_that_is_none_is_refused(mlp, tmp_path):
    with pytest.raises(UserError, match=r"expected a file that ends in \.accelnet"):
        mlp[0].save(tmp_path / "a.zip")
    with pytest.raises(UserError, match="best=True chooses among those of a work directory"):
        an.load(mlp[1], best=True)
