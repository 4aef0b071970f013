"""``bisenet stream``: a camera or film through a running service."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click import format_filename
from rich.console import Console
from rich.status import Status

from model.labels import ClassPalette, LabelMap, UInt8Array
from service.cli.extras import import_cameras
from service.cli.grpc_target import CaFile, Connect, Tls, connector
from service.cli.notes import damage_note
from service.cli.preview import Preview
from service.client.answers import (
    ClassInfo,
    Dropped,
    Failed,
    FramePolicy,
    GoingAway,
    Interrupted,
    ModelChanged,
    Opened,
    Result,
    StreamEvent,
)
from service.client.errors import ClientError, UnreachableError
from service.client.grpc_client import AsyncGrpcClient
from service.client.ledger import FrameLedger
from service.client.reconnecting_stream import ReconnectingStream, StreamOptions
from service.core.errors import InvalidArgumentError
from service.core.pictures import codec

if TYPE_CHECKING:
    from service.client.cameras import CameraFeed, FilmWriter

EXIT_FAILED = 1

_FPS_WINDOW_S = 2.0
_REDRAW_S = 0.5


def stream(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Film (path or URL), network camera (rtsp://..., http://...), or USB camera (its number or "
            "path, for example /dev/v4l/by-id/...).",
        ),
    ],
    *,
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="gRPC address of the service.")
    ] = "127.0.0.1:8001",
    model: Annotated[
        str, typer.Option(help="NAME or NAME@VERSION. Default: the default model of the service.")
    ] = "",
    policy: Annotated[
        FramePolicy | None,
        typer.Option(
            help="latest: newer frames replace older ones; block: every frame is answered. "
            "Default: latest for live sources, block for films."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILM", help="Write overlays as a film.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Show overlays in a window.")] = False,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="End after this many seconds of the source.")
    ] = None,
    max_age_ms: Annotated[
        int, typer.Option(min=0, help="Drop frames that are older; 0 = the limit of the service.")
    ] = 0,
    camera_size: Annotated[
        str | None,
        typer.Option(metavar="WIDTHxHEIGHT", help="Picture size of a USB camera, for example 1280x720."),
    ] = None,
    camera_fps: Annotated[
        float | None, typer.Option(min=0.1, help="Pictures per second of a USB camera.")
    ] = None,
    camera_pixel_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Of a USB camera, for example mjpeg or yuyv422.")
    ] = None,
    camera_timeout_s: Annotated[
        float, typer.Option(min=0.1, help="Longest silence of a network camera before it counts as lost.")
    ] = 8.0,
    key_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with the API key.")
    ] = None,
    tls: Tls = False,
    ca_file: CaFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")] = False,
) -> None:
    """Send the frames of a camera or film to a service. Lost connections and cameras are opened again.

    Examples:
        bisenet stream 0 --show --camera-size 1280x720 --camera-pixel-format mjpeg
        bisenet stream rtsp://camera/stream --server gpu-box:8001 --out overlay.mp4
        bisenet stream 0 --server masks.example:443 --tls --key-file key
        bisenet stream clip.mp4 --policy latest --seconds 10 --json
    """
    if out is not None and _is_same(source, out):
        raise typer.BadParameter(f"the output would replace the film: name another --out than {out}")
    connect = connector(server, key_file, tls=tls, ca_file=ca_file)
    try:
        cameras = import_cameras()
        feed_of = partial(
            cameras.CameraFeed,
            source,
            policy,
            seconds=seconds,
            on_lost=_warn_of_loss,
            options=cameras.CameraOptions(camera_size, camera_fps, camera_pixel_format, camera_timeout_s),
        )
        options = StreamOptions(model=model, max_frame_age_s=max_age_ms / 1e3)
        with ExitStack() as stack:
            screens = _screens(stack, cameras.source_name(source), cameras.FilmWriter, out, show=show)
            summary = asyncio.run(_follow(feed_of, connect, options, screens))
    except (ClientError, InvalidArgumentError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(EXIT_FAILED) from error
    if summary.damaged_packets:
        typer.echo(f"warning: {damage_note(summary.damaged_packets)}", err=True)
    typer.echo(json.dumps(summary.document(), indent=2) if as_json else str(summary))


def _is_same(source: str, out: Path) -> bool:
    return out.exists() and Path(source).exists() and out.samefile(source)


def _warn_of_loss(reason: str, delay_s: float) -> None:
    typer.echo(f"warning: camera lost: {reason}; trying again in {delay_s:.1f} s", err=True)


@dataclass
class StreamSummary:
    """The outcomes of the frames of a stream.

    Args:
        ledger: the outcome of every frame.

    Attributes:
        skipped: pictures of the source that newer ones replaced before they were sent.
        damaged_packets: packets of the source that could not be decoded.
        reconnects: how often the connection was lost.
        ages_s: seconds from capture to result, of every result.
    """

    ledger: FrameLedger
    skipped: int = 0
    damaged_packets: int = 0
    reconnects: int = 0
    ages_s: list[float] = field(default_factory=list)
    _started_s: float = field(default_factory=time.monotonic)
    _recent_s: deque[float] = field(default_factory=deque)

    def take(self, event: StreamEvent) -> None:
        """Count an event."""
        if isinstance(event, Interrupted):
            self.reconnects += 1
        if isinstance(event, Result):
            self._recent_s.append(time.monotonic())
            if event.captured_s is not None:
                self.ages_s.append(time.time() - event.captured_s)

    def line(self) -> str:
        """Return the state of the stream at this moment, for people."""
        begin_s = time.monotonic() - _FPS_WINDOW_S
        while self._recent_s and self._recent_s[0] < begin_s:
            self._recent_s.popleft()
        age_ms = 1e3 * self.ages_s[-1] if self.ages_s else 0.0
        outcomes = self.ledger.outcomes
        dropped = sum(outcomes.values()) - outcomes["answered"]
        fps = len(self._recent_s) / _FPS_WINDOW_S
        return f"{fps:5.1f} fps, age {age_ms:4.0f} ms, {outcomes['answered']} answered, {dropped} not"

    def document(self) -> dict[str, Any]:
        """Return all figures as plain JSON values."""
        seconds = time.monotonic() - self._started_s
        answered = self.ledger.outcomes["answered"]
        return {
            "sent": self.ledger.sent,
            **{name: self.ledger.outcomes[name] for name in _OUTCOMES},
            "skipped": self.skipped,
            "damaged_packets": self.damaged_packets,
            "reconnects": self.reconnects,
            "fps": round(answered / seconds, 2),
            "age_ms": {"p50": _percentile_ms(self.ages_s, 0.5), "p99": _percentile_ms(self.ages_s, 0.99)},
        }

    def __str__(self) -> str:
        """Return one line for people."""
        figures = self.document()
        outcomes = ", ".join(f"{figures[name]} {name}" for name in _OUTCOMES if figures[name])
        age_ms = figures["age_ms"]
        return (
            f"{figures['sent']} frames sent: {outcomes or 'none answered'}; "
            f"{figures['fps']} results a second, age p50 {age_ms['p50']} ms, p99 {age_ms['p99']} ms"
        )


_OUTCOMES = ("answered", "superseded", "too_old", "draining", "failed", "lost")


def _percentile_ms(values_s: Sequence[float], share: float) -> float | None:
    if not values_s:
        return None
    return round(1e3 * sorted(values_s)[min(len(values_s) - 1, int(share * len(values_s)))], 1)


@dataclass(frozen=True)
class _Screens:
    """The outputs for overlays: a film, a window."""

    film: FilmWriter | None
    preview: Preview | None

    def __bool__(self) -> bool:
        return self.film is not None or self.preview is not None

    def show(self, image_HW3: UInt8Array, position_s: float) -> None:
        if self.film is not None:
            self.film.write(image_HW3, position_s)
        if self.preview is not None:
            self.preview.show(image_HW3)


def _screens(
    stack: ExitStack, title: str, writer: type[FilmWriter], out: Path | None, *, show: bool
) -> _Screens:
    preview = stack.enter_context(closing(Preview(format_filename(title)))) if show else None
    film = stack.enter_context(closing(writer(out))) if out else None
    return _Screens(film, preview)


async def _follow(
    feed_of: Callable[[], CameraFeed], connect: Connect, options: StreamOptions, screens: _Screens
) -> StreamSummary:
    """Run a stream to its end."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connect())
        feed = await stack.enter_async_context(feed_of())
        frames = ReconnectingStream(client, feed, replace(options, policy=feed.policy))
        viewer = _Viewer(client, feed, screens)
        events = await stack.enter_async_context(aclosing(frames.events()))
        summary = StreamSummary(frames.ledger)
        await stack.enter_async_context(_live_line(summary))
        async for event in events:
            summary.take(event)
            await viewer.take(event)
        summary.skipped, summary.damaged_packets = feed.skipped, feed.damaged_packets
        return summary


class _Viewer:
    """Draws results, and prints the events that a user should know of."""

    def __init__(self, client: AsyncGrpcClient, feed: CameraFeed, screens: _Screens) -> None:
        self._client = client
        self._feed = feed
        self._screens = screens
        self._model = ""
        self._palette: ClassPalette | None = None

    async def take(self, event: StreamEvent) -> None:
        match event:
            case Interrupted(reason=reason) if self._palette is None:
                raise UnreachableError(reason)
            case Interrupted(reason=reason, delay_s=delay_s):
                typer.echo(f"warning: {reason}; trying again in {delay_s:.1f} s", err=True)
            case GoingAway():
                typer.echo("warning: the service is about to stop", err=True)
            case Opened(model=model, classes=classes):
                self._model, self._palette = model, _palette(classes)
            case ModelChanged(version=version) if self._screens:
                await self._change_palette(version)
            case Result():
                self._draw(event)
                self._feed.forget(event.seq)
            case Dropped(last_seq=seq) | Failed(seq=seq):
                self._feed.forget(seq)

    async def _change_palette(self, version: int) -> None:
        """Take the palette of a version. If the service does not tell it, the old palette stays."""
        with suppress(ClientError):
            for model in await self._client.models():
                if (model.name, model.version) == (self._model, version):
                    self._palette = _palette(model.classes)

    def _draw(self, result: Result) -> None:
        assert self._palette is not None
        if self._screens:
            frame = self._feed.picture(result.seq)
            label_map = LabelMap(result.mask.labels_HW(), self._palette)
            self._screens.show(codec.overlay(frame.image_HW3, label_map).pixels(), frame.position_s)


def _palette(classes: Sequence[ClassInfo]) -> ClassPalette:
    return ClassPalette(tuple(c.name for c in classes), tuple(c.color for c in classes))


@asynccontextmanager
async def _live_line(summary: StreamSummary) -> AsyncIterator[None]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with Status("connecting", console=console) as status:
        drawing = asyncio.create_task(_redraw(status, summary))
        try:
            yield
        finally:
            drawing.cancel()


async def _redraw(status: Status, summary: StreamSummary) -> None:
    while True:
        await asyncio.sleep(_REDRAW_S)
        status.update(summary.line())
