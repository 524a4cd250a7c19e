"""What a kernel is named after, and that the recipe agrees with the rest of softcard."""

import re
from pathlib import Path

import pytest

from softcard.errors import UsageError
from softcard.guest.kernel import FLAVOURS, VIRTIO_PCIDEV_ID, recipe
from softcard.guest.kernel.cache import kernel_digest
from softcard.guest.kernel.config import dropped, merge, parse, text_of
from softcard.guest.kernel.recipe import Recipe, recipe_folder
from softcard.guest.kernel.source import DebianPackage, source_from


@pytest.fixture
def made_from(tmp_path: Path) -> Recipe:
    fragment, patch = tmp_path / "a.config", tmp_path / "0001-a.patch"
    fragment.write_text("CONFIG_A=y\n")
    patch.write_text("the patch\n")
    return Recipe("default", (fragment,), (patch,))


def test_the_digest_is_the_same_for_the_same_recipe(made_from: Recipe) -> None:
    assert made_from.digest == Recipe("default", made_from.fragments, made_from.patches).digest


@pytest.mark.parametrize("which", ["fragments", "patches"])
def test_the_digest_changes_with_each_file(made_from: Recipe, which: str) -> None:
    before = made_from.digest
    path: Path = getattr(made_from, which)[0]
    path.write_text(path.read_text() + "\n")
    assert made_from.digest != before


def test_the_digest_changes_with_the_order_of_patches(made_from: Recipe, tmp_path: Path) -> None:
    before = made_from.digest
    made_from.patches[0].rename(tmp_path / "0002-a.patch")
    assert Recipe("default", made_from.fragments, (tmp_path / "0002-a.patch",)).digest != before


def test_the_kernel_is_another_one_from_another_source(made_from: Recipe) -> None:
    sources = [DebianPackage("linux-source-7.2"), DebianPackage("linux-source-7.3")]
    first, second = (kernel_digest(made_from, source) for source in sources)
    assert first != second


def test_the_digest_needs_no_look_at_the_network(made_from: Recipe) -> None:
    name = kernel_digest(made_from, source_from("debian"))
    assert re.fullmatch("[0-9a-f]{16}", name)


def test_flavours_have_kernels_of_their_own() -> None:
    digests = {recipe.recipe(flavour).digest for flavour in FLAVOURS}
    assert len(digests) == len(FLAVOURS)


def test_an_unknown_flavour_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="default, debug"):
        recipe.recipe("vanilla")


def test_kernel_and_bus_agree_on_the_number_of_the_virtio_device() -> None:
    wanted = merge(recipe.recipe().fragments)
    assert wanted["CONFIG_UML_PCI_OVER_VIRTIO_DEVICE_ID"] == str(VIRTIO_PCIDEV_ID)


def test_no_option_is_wanted_twice() -> None:
    names = [
        name
        for fragment in recipe.recipe("debug").fragments
        for name in re.findall(r"^(?:# )?(CONFIG_\w+)(?:=| is not set)", fragment.read_text(), re.M)
    ]
    assert sorted(names) == sorted(set(names))


def test_every_patch_says_why_and_comes_in_order() -> None:
    patches = recipe.recipe().patches
    assert [patch.name[:4] for patch in patches] == [
        f"{number:04}" for number in range(1, len(patches) + 1)
    ]
    for patch in patches:
        header = patch.read_text().partition("\n---\n")[0]
        assert re.search(r"^Subject: \[PATCH\] ", header, re.M), patch.name
        assert len(header.partition("\n\n")[2].split()) > 20, patch.name


def test_the_recipe_is_found_in_a_checkout() -> None:
    assert (recipe_folder() / "patches").is_dir()


def test_options_that_are_not_set_are_parsed() -> None:
    assert parse('# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x y"\n') == {
        "CONFIG_A": "y",
        "CONFIG_B": "n",
        "CONFIG_C": '"x y"',
    }


def test_a_later_fragment_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("CONFIG_A=y\nCONFIG_B=1\n")
    (tmp_path / "b").write_text("# CONFIG_A is not set\n")
    assert merge([tmp_path / "a", tmp_path / "b"]) == {"CONFIG_A": "n", "CONFIG_B": "1"}


def test_options_survive_being_written_and_parsed() -> None:
    options = {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": '""'}
    assert parse(text_of(options)) == options


def test_a_silently_dropped_option_is_named() -> None:
    wanted = {"CONFIG_A": "y", "CONFIG_B": "y", "CONFIG_C": "n", "CONFIG_D": "n", "CONFIG_E": "5"}
    config = {"CONFIG_A": "y", "CONFIG_D": "y", "CONFIG_E": "4"}
    assert dropped(wanted, config) == ["CONFIG_B=y", "CONFIG_D=n", "CONFIG_E=5"]
