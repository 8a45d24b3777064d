"""Data that only who holds a secret can read, such as the file with the records that were forgotten.

The key is stretched from the secret by scrypt with a salt made of secret and data (a synthetic IV, as in Rogaway and
Shrimpton, 2006): equal data are sealed alike, no key is used for two, and what was changed is found out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

import numpy as np

HEAD = "expunge sealed 1\n"
"""How a sealed text begins."""
SALT = 32


def seal(data: bytes, secret: bytes) -> str:
    """`data` as a text that `unseal` reads with the same secret."""
    salt = _salt(data, secret)
    return HEAD + base64.b64encode(salt + mix(data, _stretch(secret, salt))).decode() + "\n"


def unseal(text: str, secret: bytes) -> bytes | None:
    """What was sealed; None where the secret is another, or the text was changed."""
    try:
        sealed = base64.b64decode(text.removeprefix(HEAD).strip(), validate=True)
    except binascii.Error:
        return None
    salt, hidden = sealed[:SALT], sealed[SALT:]
    data = mix(hidden, _stretch(secret, salt))
    return data if text.startswith(HEAD) and hmac.compare_digest(_salt(data, secret), salt) else None


def secret_of(path: Path) -> bytes:
    """SHA-256 of a file's bytes; of a folder, of the names and the bytes of all files below it."""
    if path.is_file():
        return _file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}:".encode() + _file_digest(file))
    return digest.digest()


def mix(data: bytes, material: bytes) -> bytes:
    """`data` XOR a SHAKE-256 stream derived from `material`; the same call decrypts."""
    stream = hashlib.shake_256(b"seal:" + material).digest(len(data))
    return (np.frombuffer(data, dtype=np.uint8) ^ np.frombuffer(stream, dtype=np.uint8)).tobytes()


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _salt(data: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, b"salt:" + data, "sha256")


def _stretch(secret: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(secret, salt=salt, n=1 << 14, r=8, p=1, maxmem=1 << 26, dklen=32)
