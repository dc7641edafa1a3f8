"""A bucket behind TLS, as all real ones are: a run there, with the certificate of an authority of the user's own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from support.drivers import Driver
from support.s3_proxy import Fault, Proxy, running_proxy
from support.s3_server import KEYS, S3Server

SMALL, LARGE = 1000, 9 << 20


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def encrypted(rclone: S3Server, certificate: Path) -> Iterator[Proxy]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running_proxy(rclone.port, tls=context) as proxy:
        yield proxy


RUN = """
import sys, tempfile
from pathlib import Path
import holdfast as train

def loop(config):
    found = train.get_checkpoint()
    if found is not None:
        with found.as_directory() as directory:
            return sorted((path.name, path.stat().st_size) for path in Path(directory).iterdir() if path.name[0] != ".")
    with tempfile.TemporaryDirectory() as directory:
        for name, size_bytes in config.items():
            Path(directory, name).write_bytes(b"x" * size_bytes)
        train.report({"loss": 1.0}, train.Checkpoint(directory))

def fit():
    return train.DataParallelTrainer(
        loop,
        train_loop_config={"small": int(sys.argv[2]), "large": int(sys.argv[3])},
        run_config=train.RunConfig(name="run", storage_path=sys.argv[1], progress="quiet"),
    ).fit()

if __name__ == "__main__":
    fit()
    print(fit().return_value, flush=True)
"""


def run(tmp_path: Path, url: str, **environment: str) -> tuple[int, str, str]:
    (tmp_path / "script.py").write_text(RUN)
    variables = {**os.environ, **KEYS, **environment}
    with Driver(tmp_path / "script.py", url, SMALL, LARGE, env=variables) as driver:
        printed, _ = driver.communicate(timeout=120)
        return driver.returncode, printed, driver.said()


def test_a_run_behind_tls_sends_each_byte_once_and_does_not_sign_it_too(
    rclone: S3Server, encrypted: Proxy, certificate: Path, tmp_path: Path
) -> None:
    url = f"s3://{rclone.make_bucket()}/exp?endpoint_override=https://127.0.0.1:{encrypted.port}"
    unsigned = encrypted.fail(Fault("PUT", "UNSIGNED-PAYLOAD", times=-1))
    code, printed, said = run(tmp_path, url, SSL_CERT_FILE=str(certificate))
    assert (code, printed) == (0, f"[('large', {LARGE}), ('small', {SMALL})]\n"), said
    assert -1 - unsigned.times == encrypted.count("PUT")


def test_whoever_wants_bytes_to_be_signed_says_so(
    rclone: S3Server, encrypted: Proxy, certificate: Path, tmp_path: Path
) -> None:
    url = f"s3://{rclone.make_bucket()}/exp?endpoint_override=https://127.0.0.1:{encrypted.port}"
    unsigned = encrypted.fail(Fault("PUT", "UNSIGNED-PAYLOAD", times=-1))
    code, _, said = run(tmp_path, url, SSL_CERT_FILE=str(certificate), AWS_UNSIGNED_PAYLOAD="false")
    assert code == 0, said
    assert unsigned.times == -1


def test_a_certificate_that_nobody_vouches_for_is_told_of(
    rclone: S3Server, encrypted: Proxy, certificate: Path, tmp_path: Path
) -> None:
    url = f"s3://{rclone.make_bucket()}/exp?endpoint_override=https://127.0.0.1:{encrypted.port}&request_timeout=2"
    code, _, said = run(tmp_path, url)
    assert code == 1
    assert "StorageAccessError" in said
    assert "is not trusted here (UnknownIssuer); set SSL_CERT_FILE" in said
