"""The examples below ``docs``: what they say is true."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.datasets.dataset import DatasetSpec, LabeledImages
from model.datasets.dataset_lines import FILE_KEYS
from service.settings import load_settings

DOCS = Path(__file__).parents[2] / "docs"


def test_the_configuration_states_every_key_and_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    defaults = load_settings(environment={})
    assert load_settings(DOCS / "bisenet.toml", environment={}) == defaults
    whole = re.sub(r"^#(?=\w+ = )", "", (DOCS / "bisenet.toml").read_text("utf-8"), flags=re.MULTILINE)
    (tmp_path / "bisenet.toml").write_text(whole, encoding="utf-8")
    load_settings(tmp_path / "bisenet.toml", environment={})
    stated = {section: values.keys() for section, values in tomllib.loads(whole).items()}
    names = {"datasets": {"camvid"}, "sources": {"camera"}, "targets": {"masks"}}  # which users choose
    assert {section: stated.pop(section) for section in names} == names
    assert stated == {
        section: type(values).model_fields.keys() for section, values in defaults if section not in names
    }


def test_the_data_set_has_its_labels_where_it_says(tmp_path: Path) -> None:
    for folder in ("photos", "labels", "val/images", "val/labels"):
        (tmp_path / folder).mkdir(parents=True)
    for image, labels in (("photos/1.jpg", "labels/1.png"), ("val/images/2.jpg", "val/labels/2.png")):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / image)
        Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / labels)
    (tmp_path / "train.csv").write_text("photos/1.jpg,labels/1.png\n")
    (tmp_path / "dataset.toml").write_bytes((DOCS / "dataset.toml").read_bytes())
    spec = DatasetSpec.load(str(tmp_path / "dataset.toml"))
    for split in ("train", "val"):
        _, label_HW = LabeledImages(spec, split)[0]
        assert (label_HW == 1).all()


def test_the_data_set_file_states_every_key(tmp_path: Path) -> None:
    text = (DOCS / "dataset.toml").read_text("utf-8")
    whole = re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)
    assert tomllib.loads(whole.partition("\n[[classes]]")[0]).keys() == FILE_KEYS
    in_colors = re.sub(r"^255 = 1$", '"255,255,255" = 1', whole, flags=re.MULTILINE).replace(
        '"ids"', '"colors"'
    )
    for number, variant in enumerate(
        re.sub(r"^classes = .*$", "", one, flags=re.MULTILINE) for one in (whole, in_colors)
    ):
        file = tmp_path / f"{number}.toml"
        file.write_text(variant, encoding="utf-8")
        assert DatasetSpec.from_toml(file).rules.max_pixels == 200_000_000
