"""A window that shows pictures, on machines with a display."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import typer
from PIL import Image

from model.labels import UInt8Array


class Preview:
    """Shows one picture after the other. All calls come from one thread.

    Args:
        title: title of the window.
        environment: variables of the process; None = those of this process.

    Raises:
        typer.BadParameter: there is no display, or tkinter is not installed.
    """

    def __init__(self, title: str, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        if not environment.get("DISPLAY"):
            raise typer.BadParameter(
                "--show needs a display, and DISPLAY is not set: write a film with --out instead"
            )
        try:
            import tkinter as tk  # noqa: PLC0415 - Debian packs it separately; only a preview needs it

            from PIL import ImageTk  # noqa: PLC0415
        except ImportError as error:
            raise typer.BadParameter(f"--show needs python3-tk: {error}") from error
        try:
            self._window: Any = tk.Tk()
        except tk.TclError as error:
            raise typer.BadParameter(f"--show cannot open a window: {error}") from error
        self._window.title(title)
        self._photo_of = ImageTk.PhotoImage
        self._label = tk.Label(self._window)
        self._label.pack()
        self._photo: Any = None

    def show(self, image_HW3: UInt8Array) -> None:
        """Show a picture, uint8 RGB, until the next one comes."""
        self._photo = self._photo_of(Image.fromarray(image_HW3))
        self._label.configure(image=self._photo)
        self._window.update()

    def close(self) -> None:
        """Close the window."""
        self._window.destroy()
