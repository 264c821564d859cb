"""Embeddings of several requests together are those of each image alone, and are kept."""

import torch

from flows.inference.embeddings import Embeddings
from model.assistant import Assistant
from model.prefixes import ReadPrefix
from tests.support.tiny_bundle import image

COLOURS = ("red", "blue", "green")


def test_requests_get_their_images_in_order(assistant: Assistant) -> None:
    embeddings = Embeddings(assistant, 2**20)
    red, blue, green = (embeddings.prepare(image(colour)) for colour in COLOURS)
    found = embeddings.of([[red, blue], [], [blue], [green, red]])
    alone = {colour: assistant.see(image(colour)) for colour in COLOURS}
    expected = [("red", "blue"), ("blue",), ("green", "red")]
    for patches, colours in zip([found[0], *found[2:]], expected, strict=True):
        # Products of another shape may add up in another order, before they are rounded to float16.
        expected_patches = torch.stack([alone[each] for each in colours])
        torch.testing.assert_close(patches, expected_patches, rtol=2**-10, atol=1e-4)
    assert torch.equal(found[1], assistant.shown([]))


def test_an_image_that_comes_again_is_not_embedded_again(assistant: Assistant) -> None:
    embeddings = Embeddings(assistant, 2**20)
    first = embeddings.of([[embeddings.prepare(image())]])[0]
    again = embeddings.prepare(image())
    assert again.pixels is None
    assert torch.equal(embeddings.of([[again]])[0], first)


def test_what_the_language_model_made_of_images_is_kept_as_far_as_there_is_room(
    assistant: Assistant,
) -> None:
    embeddings = Embeddings(assistant, 2**20)
    red, blue = embeddings.prepare(image("red")), embeddings.prepare(image("blue"))
    half = ReadPrefix(torch.zeros(1, 2**16), torch.zeros(1, 2, 1, 1, 2**15))  # 2 ** 19 bytes
    assert embeddings.prefix(red) is None
    embeddings.keep_prefix(red, half)
    assert embeddings.prefix(embeddings.prepare(image("red"))) is half
    embeddings.keep_prefix(blue, half)
    embeddings.keep_prefix(embeddings.prepare(image("green")), half)
    assert [embeddings.prefix(each) is None for each in (red, blue)] == [True, False]
    large = ReadPrefix(half.tokens, torch.zeros(1, 2, 1, 1, 2**18))
    embeddings.keep_prefix(red, large)
    assert embeddings.prefix(red) is None


def test_no_more_is_kept_than_allowed(assistant: Assistant) -> None:
    size = assistant.see(image()).nbytes
    embeddings = Embeddings(assistant, 2 * size)
    for colour in COLOURS:
        embeddings.of([[embeddings.prepare(image(colour))]])
    pixels = [embeddings.prepare(image(colour)).pixels for colour in COLOURS]
    assert [each is None for each in pixels] == [False, True, True]
    none = Embeddings(assistant, size - 1)
    none.of([[none.prepare(image())]])
    assert none.prepare(image()).pixels is not None
