"""Certificates that cannot be used are named before a port is opened."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Certificate, make_certificate, needs_openssl

from service.core.tls import TlsError, TlsFiles

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
