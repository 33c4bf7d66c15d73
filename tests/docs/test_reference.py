"""The reference: nothing is left out, and each setting is described once."""

import tomllib

import pytest
import reference

from penstock.runtime.cli.main import main
from penstock.runtime.config.config import Config
from penstock.runtime.config.described import Setting, described, sections
from penstock.runtime.config.settings import OVERRIDES
from tests.support.pages import DOCS

SETTINGS = list(described())


def words(text: str) -> str:
    """``text`` without line breaks, those within words included."""
    return " ".join(text.replace("\n# ", " ").split()).replace("- ", "-")


def test_every_override_is_described():
    assert [setting.keyword for setting in SETTINGS] == list(OVERRIDES)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.keyword)
def test_examples_are_right_and_differ_from_the_default(setting: Setting):
    assert setting.example != setting.default
    config = Config(**tomllib.loads(f"[{setting.section}]\n{setting.key} = {setting.example}"))
    assert config != Config()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.keyword)
def test_defaults_are_those_of_the_file(setting: Setting):
    config = Config(**tomllib.loads(f"[{setting.section}]\n{setting.key} = {setting.default}"))
    assert config == Config()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.keyword)
def test_a_description_is_a_sentence_that_help_can_show(setting: Setting):
    assert setting.text.endswith(".")
    assert ";" not in setting.text
    assert len(setting.brief) <= 110


def test_one_description_feeds_comments_help_and_reference(capsys, monkeypatch):
    main(["config"])
    comments = words(capsys.readouterr().out)
    main(["config", "--help"])
    shown = words(capsys.readouterr().out)
    page = words("\n".join(reference.configuration()))
    for setting in SETTINGS:
        assert words(setting.text) in comments
        assert words(setting.brief.removesuffix(".")) in shown
        assert words(setting.text) in page


def test_the_configuration_page_has_every_key():
    page = "\n".join(reference.configuration())
    for section, about in sections().items():
        assert f"## [{section}]\n" in page
        assert about in page
    for setting in SETTINGS:
        assert f"`{setting.option} {setting.name}`" in page
        assert f"`{setting.key} = {setting.example}`" in page


def test_the_command_page_has_every_command_and_option():
    page = "\n".join(reference.command_line())
    commands = dict(reference.leaves(reference.typer.main.get_command(reference.make_app()), "penstock"))
    assert "penstock cache save" in commands
    for name, command in commands.items():
        assert f"## {name}\n" in page
        for each in command.params:
            assert each.param_type_name == "argument" or each.opts[0] in page


def test_every_page_is_in_the_site():
    listed = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    for page in [*DOCS.rglob("*.md"), *(DOCS / path for path in reference.PAGES)]:
        assert f" {page.relative_to(DOCS).as_posix()}\n" in listed
