"""A worker's loop in this process, at the other end of a socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine, write_pooling_artifact

from model.artifacts.artifact import Artifact
from model.pictures.preprocess import ImageSize
from service.core.device.batch_job import Outcome
from service.core.device.device import Device
from service.core.device.engine import EngineInfo, EngineOptions, EngineUnavailableError
from service.core.device.ipc import (
    MAX_MESSAGE_BYTES,
    DoneMessage,
    ForgetMessage,
    HelloMessage,
    IpcError,
    IpcMessage,
    LabelMessage,
    LoadMessage,
    PictureEntry,
    ReplyMessage,
    ScoreMessage,
    UnloadMessage,
    decode_message,
    encode_message,
)
from service.core.device.slots import SlotPool
from service.core.device.worker_connection import ExecutionRecord
from service.core.device.worker_loop import WorkerLoop

SIZE = ImageSize(32, 32)


class Peer:
    """The service's end of the socket."""

    def __init__(self, cache_folder: Path) -> None:
        self.engine = FakeEngine(answer=lambda images: np.zeros((len(images), 2, 4, 4), np.float32))
        self.refusal: Exception | None = None
        self.may_build = threading.Event()
        self.may_build.set()
        self.pool = SlotPool()
        page = os.memfd_create("record")
        os.ftruncate(page, 4096)
        self.record = ExecutionRecord(page)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(PATIENCE_S)
        self.error: BaseException | None = None
        options = EngineOptions("cpu", "auto", cache_folder)
        self.loop = WorkerLoop(theirs, ExecutionRecord(page), Device(self._build, options, decode_threads=1))
        self._theirs = theirs
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        os.close(page)

    def _build(self, _artifact: Artifact, _options: EngineOptions) -> FakeEngine:
        assert self.may_build.wait(PATIENCE_S)
        if self.refusal is not None:
            raise self.refusal
        return self.engine

    def _run(self) -> None:
        try:
            self.loop.serve()
        except IpcError as error:
            self.error = error
        self.loop.close()
        self._theirs.close()

    def send(self, message: IpcMessage, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))] if descriptors else []
        self.socket.sendmsg([encode_message(message)], rights)

    def receive(self) -> IpcMessage:
        return decode_message(self.socket.recv(MAX_MESSAGE_BYTES))

    def load(self, artifact: Artifact) -> ReplyMessage:
        self.send(LoadMessage(5, 1, "pooling@1", str(artifact.folder)))
        reply = self.receive()
        assert isinstance(reply, ReplyMessage)
        return reply

    def slot(self) -> tuple[int, int]:
        slot = self.pool.lease(1 << 20, now_s=0).slot
        assert slot.descriptor is not None
        return slot.number, slot.descriptor

    def end(self) -> BaseException | None:
        self.socket.close()
        self.thread.join(PATIENCE_S)
        return self.error


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_pooling_artifact(tmp_path_factory.mktemp("artifact") / "one")


@pytest.fixture
def peer(shared_cache: Path) -> Iterator[Peer]:
    peer = Peer(shared_cache)
    assert peer.receive() == HelloMessage()
    yield peer
    peer.end()


def entry(slot: int, *, within_s: float = PATIENCE_S) -> PictureEntry:
    return PictureEntry(slot, time.monotonic() + within_s, SIZE, SIZE, SIZE)


def test_it_loads_labels_and_says_what_it_has_begun(peer: Peer, artifact: Artifact) -> None:
    assert peer.load(artifact).engine == EngineInfo("fake", "cpu", "f32")
    number, descriptor = peer.slot()
    peer.send(LabelMessage(7, 1, (entry(number),)), descriptor)
    done = peer.receive()
    assert isinstance(done, DoneMessage)
    assert (done.token, done.report.outcomes) == (7, (Outcome.ANSWERED,))
    assert peer.record.has_started(7)
    assert not peer.record.has_started(8)
    assert peer.record.reply_of(7) == encode_message(done)
    assert peer.record.reply_of(8) is None
    assert peer.engine.seen == [(1, 32, 32, 3)]


def test_a_slot_comes_once_and_is_known_until_it_is_forgotten(peer: Peer, artifact: Artifact) -> None:
    peer.load(artifact)
    number, descriptor = peer.slot()
    peer.send(LabelMessage(1, 1, (entry(number),)), descriptor)
    peer.receive()
    peer.send(LabelMessage(2, 1, (entry(number),)))
    peer.receive()
    peer.send(ForgetMessage((number, 999)))
    peer.send(LabelMessage(3, 1, (entry(number),)))
    peer.thread.join(PATIENCE_S)
    assert "without its memory" in str(peer.end())


def test_a_job_whose_time_is_up_when_it_is_its_turn_is_not_run(peer: Peer, artifact: Artifact) -> None:
    peer.load(artifact)
    number, descriptor = peer.slot()
    peer.send(LabelMessage(1, 1, (entry(number, within_s=-1),)), descriptor)
    done = peer.receive()
    assert isinstance(done, DoneMessage)
    assert done.report.outcomes == (Outcome.EXPIRED,)
    assert peer.engine.seen == []


@pytest.fixture
def held_peer(peer: Peer, artifact: Artifact) -> Peer:
    peer.engine = FakeEngine(held=True)
    peer.load(artifact)
    return peer


def tokens_of_two(peer: Peer) -> list[int]:
    """Label a picture that comes while the device has another; return the tokens as the answers come."""
    (first, first_memory), (second, second_memory) = peer.slot(), peer.slot()
    peer.send(LabelMessage(1, 1, (entry(first),)), first_memory)
    peer.engine.wait_until_busy()
    peer.send(LabelMessage(2, 1, (entry(second),)), second_memory)
    assert not peer.record.has_started(2)
    peer.engine.go_on(2)
    return [message.token for message in (peer.receive(), peer.receive()) if isinstance(message, DoneMessage)]


def test_a_job_that_comes_while_another_runs_follows_it(held_peer: Peer) -> None:
    assert tokens_of_two(held_peer) == [1, 2]


def test_answers_keep_their_order_though_the_thread_that_sends_gets_no_processor(held_peer: Peer) -> None:
    loop = held_peer.loop
    heard, loop._is_unsent = loop._is_unsent, SimpleQueue()  # the thread waits at the old one
    assert tokens_of_two(held_peer) == [1, 2]
    loop._is_unsent = heard


def test_a_model_is_loaded_after_the_unloading_that_came_before(peer: Peer, artifact: Artifact) -> None:
    """Both may have the same name."""
    old = peer.engine = FakeEngine(held=True)
    peer.load(artifact)
    number, descriptor = peer.slot()
    peer.send(LabelMessage(1, 1, (entry(number),)), descriptor)
    old.wait_until_busy()
    new = peer.engine = FakeEngine()
    peer.send(UnloadMessage(6, 1))
    peer.send(LoadMessage(7, 2, "pooling@1", str(artifact.folder)))
    old.go_on()
    done, unloaded, loaded = (peer.receive() for _ in range(3))
    assert isinstance(done, DoneMessage)
    assert (unloaded, type(loaded)) == (ReplyMessage(6), ReplyMessage)
    assert (old.closed, new.closed) == (True, False)
    peer.send(LabelMessage(2, 2, (entry(number),)))
    assert isinstance(peer.receive(), DoneMessage)
    assert new.seen


def test_jobs_run_while_a_model_is_loaded(peer: Peer, artifact: Artifact) -> None:
    peer.load(artifact)
    peer.may_build.clear()
    peer.send(LoadMessage(6, 2, "pooling@2", str(artifact.folder)))
    number, descriptor = peer.slot()
    peer.send(LabelMessage(1, 1, (entry(number),)), descriptor)
    assert isinstance(peer.receive(), DoneMessage)
    peer.may_build.set()
    assert isinstance(peer.receive(), ReplyMessage)


@pytest.mark.parametrize("refusal", [EngineUnavailableError("no GPU"), RuntimeError("a library failed")])
def test_an_engine_that_cannot_be_built_is_an_answer(
    peer: Peer, artifact: Artifact, refusal: Exception
) -> None:
    peer.refusal = refusal
    assert peer.load(artifact) == ReplyMessage(5, error=type(refusal).__name__, reason=str(refusal))


def test_an_artifact_that_is_not_there_is_an_answer(peer: Peer, tmp_path: Path) -> None:
    peer.send(LoadMessage(5, 1, "pooling@1", str(tmp_path / "nowhere")))
    reply = peer.receive()
    assert isinstance(reply, ReplyMessage)
    assert reply.error == "ArtifactError"


def test_an_unloaded_model_is_freed(peer: Peer, artifact: Artifact) -> None:
    peer.load(artifact)
    peer.send(UnloadMessage(9, 1))
    assert peer.receive() == ReplyMessage(9)
    assert peer.engine.closed


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (LabelMessage(1, 77, (entry(1),)), "memory"),
        (HelloMessage(), "does not send"),
    ],
)
def test_what_makes_no_sense_ends_the_loop(peer: Peer, message: IpcMessage, reason: str) -> None:
    peer.send(message)
    peer.thread.join(PATIENCE_S)
    assert reason in str(peer.end())


def test_a_model_that_was_never_loaded_ends_the_loop(peer: Peer) -> None:
    number, descriptor = peer.slot()
    peer.send(LabelMessage(1, 77, (entry(number),)), descriptor)
    peer.thread.join(PATIENCE_S)
    assert "77" in str(peer.end())


def test_arrays_that_do_not_fit_into_their_slot_end_the_loop(peer: Peer, artifact: Artifact) -> None:
    peer.load(artifact)
    number, descriptor = peer.slot()
    deadline_s = time.monotonic() + PATIENCE_S
    peer.send(ScoreMessage(1, 1, number, deadline_s, "uint8", (9, 999, 999), (9, 2, 4, 4)), descriptor)
    peer.thread.join(PATIENCE_S)
    assert "does not fit" in str(peer.end())


def test_bytes_that_are_no_message_end_the_loop(peer: Peer) -> None:
    peer.socket.send(b"garbage")
    peer.thread.join(PATIENCE_S)
    assert "no message" in str(peer.end())


def test_the_end_of_the_service_is_the_end_of_the_loop(peer: Peer) -> None:
    assert peer.end() is None
    assert not peer.thread.is_alive()
