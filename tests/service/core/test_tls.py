"""Certificates that cannot be used are named before a port is opened."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate, needs_openssl

from service.core.tls import CertificateFollower, TlsError, TlsFiles

pytestmark = needs_openssl


@pytest.fixture
async def certificate(tmp_path: Path) -> Certificate:
    return await make_certificate(tmp_path)


@pytest.fixture
def files(certificate: Certificate) -> TlsFiles:
    return TlsFiles(certificate.file, certificate.key_file)


async def test_clients_need_a_certificate_where_there_is_a_client_ca(files: TlsFiles) -> None:
    assert files.http_context().verify_mode is ssl.CERT_NONE
    assert replace(files, client_ca=files.cert).http_context().verify_mode is ssl.CERT_REQUIRED
    assert files.http_context().minimum_version is ssl.TLSVersion.TLSv1_2


async def test_a_file_that_is_gone_or_wrong_is_named(files: TlsFiles, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("this is no certificate")
    for path in (wrong, tmp_path / "none.pem"):
        for bad in (replace(files, cert=path), replace(files, key=path), replace(files, client_ca=path)):
            with pytest.raises(TlsError, match=path.name):
                bad.pem()


async def test_a_key_of_another_certificate_is_refused(files: TlsFiles, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    other = await make_certificate(folder)
    with pytest.raises(TlsError, match="no certificate and key"):
        replace(files, key=other.key_file).http_context()


class Clock:
    """A clock that a test sets, in seconds."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def replace_by_new(files: TlsFiles, folder: Path) -> TlsFiles:
    """Make a certificate, and move it to where the files are; return copies of it."""
    folder.mkdir()  # noqa: ASYNC240 - a test waits for it
    new = await make_certificate(folder)
    for path, made in ((files.cert, new.file), (files.key, new.key_file)):
        path.write_bytes(made.read_bytes())
    return TlsFiles(new.file, new.key_file)


async def test_a_certificate_that_is_replaced_is_used_a_second_later(files: TlsFiles, tmp_path: Path) -> None:
    clock = Clock()
    certificates = CertificateFollower(files, clock=clock)
    first = certificates.pem()
    new = await replace_by_new(files, tmp_path / "new")
    assert certificates.pem() is first
    clock.now_s = 1.0
    assert certificates.pem() == new.pem() != first
    clock.now_s = 2.0
    assert certificates.pem() is certificates.pem()


async def test_files_that_cannot_be_used_leave_the_earlier_certificate(
    files: TlsFiles, tmp_path: Path
) -> None:
    clock = Clock()
    certificates = CertificateFollower(files, clock=clock)
    first = certificates.pem()
    old_key = files.key.read_bytes()
    new = await replace_by_new(files, tmp_path / "new")
    files.key.write_bytes(old_key)  # the certificate is here, its key not yet
    clock.now_s = 1.0
    assert certificates.pem() is first
    files.key.unlink()
    clock.now_s = 2.0
    assert certificates.pem() is first
    files.key.write_bytes(new.key.read_bytes())
    clock.now_s = 3.0
    assert certificates.pem() == new.pem()


async def test_a_certificate_that_cannot_be_used_at_the_start_is_an_error(files: TlsFiles) -> None:
    files.key.unlink()
    with pytest.raises(TlsError):
        CertificateFollower(files)
