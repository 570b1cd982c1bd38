"""Where this user's data lies: $SSD_HOME, or the platform's own folder for application data.

Knows the folder names and the device secret, and nothing of what is stored in them.
"""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

import platformdirs

from ssd_diffusion.errors import InvalidHome

_SECRET_BYTES = 32


def home() -> Path:
    """The folder of this user's experts, models and ledger; made with mode 0700 when missing.

    Raises:
        InvalidHome: it is no folder, or cannot be made.
    """
    chosen = os.environ.get("SSD_HOME")
    path = Path(chosen) if chosen else Path(platformdirs.user_data_dir("ssd2"))
    try:
        return _private_dir(path.expanduser())
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of nobody
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = "it is not a folder" if isinstance(error, FileExistsError) else getattr(error, "strerror", 0) or error
        raise InvalidHome(f"{path} cannot hold your data ({reason}); set SSD_HOME to a folder of your own") from error


def models_dir(root: Path) -> Path:
    """Converted base models under a home folder."""
    return _private_dir(root / "models")


def experts_dir(root: Path) -> Path:
    """Registered experts under a home folder."""
    return _private_dir(root / "experts")


def device_secret(root: Path) -> bytes:
    """The device's own 32 secret bytes, made on first use with mode 0600. They never leave the device.

    Raises:
        ValueError: the file is not 32 bytes long.
    """
    path = root / "device-secret"
    if not path.exists():
        temporary = path.with_name(f".device-secret-{os.getpid()}-{secrets.token_hex(4)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        try:
            os.link(temporary, path)  # the first of two processes wins; both then read the same bytes
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    data = path.read_bytes()
    if len(data) != _SECRET_BYTES:
        raise ValueError(f"{path} is not a device secret; remove it and a new one is made at the next start")
    return data


def _private_dir(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path
