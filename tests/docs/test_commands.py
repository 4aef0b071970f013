"""The commands of README and of the pages below ``docs`` run as they stand there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from markdown_commands import PAGES, ROOT, CommandBlock, command_blocks, run_page

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder that looks like a checkout: its entries are links to those of this one."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in {".git", ".venv", "runs"}:
            (folder / entry.name).symlink_to(entry)
    _link_environment(ROOT / ".venv", folder / ".venv")
    return folder


def _link_environment(source: Path, target: Path) -> None:
    """Link an environment that counts as installed, so that ``make`` does not change that of the source."""
    if source.exists():
        target.mkdir()
        for entry in source.iterdir():
            (target / entry.name).symlink_to(entry)
        for stamp in (".installed-base", ".installed-dev"):
            (target / stamp).unlink(missing_ok=True)
            (target / stamp).touch()


def test_a_comment_above_a_block_says_how_it_is_run() -> None:
    page = (
        "text\n\n```bash\na\n```\n\n"
        "<!-- not run: needs a camera -->\n```bash\nb\n```\n\n"
        "1. step\n\n    <!-- background: http://x/ready -->\n    ```bash\n    c\n    d\n    ```\n\n"
        "```python\nnone\n```\n"
    )
    assert command_blocks(page) == [
        CommandBlock("a\n"),
        CommandBlock("b\n", not_run="needs a camera"),
        CommandBlock("c\nd\n", ready_url="http://x/ready"),
    ]


@pytest.mark.parametrize("comment", ["<!-- not run -->", "<!-- not run: -->", "<!-- maybe: x -->"])
def test_a_comment_of_another_form_is_refused(comment: str) -> None:
    with pytest.raises(ValueError, match="above a block"):
        command_blocks(f"{comment}\n```bash\na\n```\n")


def test_blocks_share_variables_and_the_folder_and_a_failure_shows_its_block(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nexport A='1 2'\nmkdir sub\ncd sub\n```\n```bash\n[ \"$A\" = '1 2' ] && touch made\n```\n"
        "```bash\nls nothing-here\n```\n"
    )
    with pytest.raises(AssertionError, match="ls nothing-here"):
        run_page(page, tmp_path, {"PATH": os.environ["PATH"]}, timeout_s=20)
    assert (tmp_path / "sub/made").exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_block_of_a_page_can_be_read(name: str) -> None:
    command_blocks((ROOT / name).read_text("utf-8"))


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_a_page_run_as_they_stand(name: str, checkout: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    passed_on = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "BISENET_"))}
    path = f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"
    run_page(ROOT / name, checkout, {**passed_on, "HOME": str(home), "PATH": path}, timeout_s=900)
