"""The published assistant: one folder in, captions and answers out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.cli import main
from model.adapters import merge_adapter
from model.assistant import Assistant, load_assistant
from model.bundle import PREFIX
from model.errors import ModelError
from model.language import load_language_model
from tests.support.tiny_bundle import image


def test_the_streamed_text_grows_to_the_answer(assistant: Assistant) -> None:
    texts = list(assistant.stream(image(), "What colour is it?"))
    assert len(texts) > 3
    assert texts[-1] == assistant.ask(image(), "What colour is it?")
    assert list(assistant.stream(image(), None))[-1] == assistant.caption([image()])[0]


def test_the_image_and_the_history_matter(assistant: Assistant) -> None:
    answers = {
        assistant.ask(image("red"), "What colour?"),
        assistant.ask(image("blue"), "What colour?"),
        assistant.ask(image("red"), "What colour?", [("How many?", "Two.")]),
    }
    assert len(answers) == 3


def test_the_oldest_turns_are_forgotten_where_there_is_no_room(assistant: Assistant) -> None:
    turn = ("How many objects are there?", "Two.")
    short = assistant.ask(image(), "What colour?", [turn] * 3)
    assert assistant.ask(image(), "What colour?", [("old " * 200, "x"), *[turn] * 3]) == short


def test_a_question_that_never_fits_is_refused_in_tokens(assistant: Assistant) -> None:
    with pytest.raises(ModelError, match=f"{assistant.room} fit"):
        assistant.ask(image(), "why " * 300)
    with pytest.raises(ModelError, match="empty"):
        assistant.ask(image(), "  ")


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a phivision bundle"):
        load_assistant(tmp_path)


def test_a_bundle_of_a_later_format_is_refused(assistant: Assistant, tmp_path: Path) -> None:
    card = {**assistant.card, "format": 99}
    (tmp_path / "bundle.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="format 99"):
        load_assistant(tmp_path)


@pytest.mark.parametrize("command", ["ask", "caption"])
def test_an_image_that_cannot_be_used_is_named_with_the_kinds_that_can(
    command: str, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "red.png", tmp_path / "phone.heic"
    good.write_bytes(image())
    bad.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    told = [str(bad), "What?"] if command == "ask" else [str(good), str(bad)]
    with pytest.raises(SystemExit) as ended:
        main([command, *told, "--bundle", str(tiny_bundle)])
    printed = capsys.readouterr()
    assert ended.value.code == 1
    assert f"{bad}: unsupported format" in printed.err
    assert "JPEG, PNG, WebP" in printed.err
    assert "b'" not in printed.err
    assert not printed.out


def test_a_question_may_be_about_several_images(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    card = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**card, "max_images": 2}))
    paths = [tmp_path / f"{colour}.png" for colour in ("red", "blue")]
    for path in paths:
        path.write_bytes(image(path.stem))
    said = []
    for first, second in (paths, reversed(paths)):
        main(["ask", str(first), "Which?", "--also", str(second), "--bundle", str(bundle)])
        said.append(capsys.readouterr().out.strip())
    expected = Assistant(bundle).ask([image("red"), image("blue")], "Which?")
    assert said[0] == expected
    assert said[0] != said[1]
    for told, fault in (
        (["--also", str(paths[1])] * 2, "3 images, but this assistant has learned to see 2"),
        (["--also", str(paths[1]), "--why"], "--why explains an answer about one image"),
        (["--also", str(tmp_path / "no.png")], f"No such file: {tmp_path / 'no.png'}"),
    ):
        with pytest.raises(SystemExit):
            main(["ask", str(paths[0]), "Which?", *told, "--bundle", str(bundle)])
        assert fault in capsys.readouterr().err


def test_a_question_in_another_encoding_is_one_line(
    assistant: Assistant,
    tiny_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(image())
    typed = b"caf\xe9?".decode(errors="surrogateescape")  # as Python reads its arguments
    with pytest.raises(SystemExit) as ended:
        main(["ask", str(path), typed, "--bundle", str(tiny_bundle)])
    assert ended.value.code == 1
    assert "the question has an incomplete character" in capsys.readouterr().err
    with pytest.raises(ModelError, match="incomplete character"):
        assistant.ask(image(), "What colour?", [(typed, "Red.")])


def test_a_broken_image_among_good_ones_is_named(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, torn = tmp_path / "red.png", tmp_path / "torn.png"
    good.write_bytes(image())
    torn.write_bytes(image()[:100])
    with pytest.raises(SystemExit):
        main(["caption", str(good), str(torn), "--bundle", str(tiny_bundle)])
    assert f"{torn}: broken image" in capsys.readouterr().err


def test_a_hub_address_needs_no_network_to_fail_clearly() -> None:
    with pytest.raises(ModelError, match=r"hf://nobody/nothing cannot be fetched"):
        load_assistant("hf://nobody/nothing")


def test_weights_that_are_a_pickle_are_refused(assistant: Assistant, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(assistant.folder, folder)
    (folder / "lm" / "model.safetensors").unlink()
    state = load_language_model(assistant.folder / "lm").state_dict()
    torch.save(state, folder / "lm" / "pytorch_model.bin")
    with pytest.raises(ModelError, match="language model"):
        load_assistant(folder)


def test_adapters_of_another_model_are_refused(assistant: Assistant, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapters"):
        merge_adapter(assistant.vlm.language_model, tmp_path)


def test_a_bundle_made_before_patches_were_centred_answers_as_it_did(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    shutil.copytree(tiny_bundle, older)
    prefix = load_file(older / PREFIX)
    assert {prefix.pop("patch_mean").any().item(), prefix.pop("patch_scale").item()} == {False, 1.0}
    save_file(prefix, older / PREFIX)
    asked = [load_assistant(folder).ask(image(), "What?") for folder in (tiny_bundle, older)]
    assert asked[0] == asked[1]
