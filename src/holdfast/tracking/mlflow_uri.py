"""Where an MLflow tracking URI leads, and whether one gets there."""

from __future__ import annotations

import importlib.util
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from holdfast.errors import ConfigurationError
from holdfast.urls import shown_url

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_FOR_DATABASES = ("sqlalchemy", "alembic")  # no part of mlflow-skinny
_ELSEWHERE = 'tracking_uri="http://…" for a tracking server'
_CONNECT_S = 5.0


def check_uri(tracking_uri: str | None) -> None:
    """Says before training what MLflow would say, in its thread, after the first report.

    Raises:
        ConfigurationError: The MLflow that is installed cannot go there.
    """
    from mlflow import environment_variables, get_tracking_uri

    uri = str(tracking_uri or get_tracking_uri())
    scheme = urlsplit(uri).scheme.partition("+")[0]
    missing = [name for name in _FOR_DATABASES if importlib.util.find_spec(name) is None]
    if scheme in _DATABASES and missing:
        raise ConfigurationError(
            f"MLflowCallback: the tracking URI {shown_url(uri)} is a database, for which MLflow needs {' and '.join(missing)}. Install it with: "
            f"pip install holdfast[mlflow], or all of mlflow; or give {_ELSEWHERE}"
        )
    # Where MLflow does not know the variable, it takes directories without it.
    allowed = getattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE", None)
    if scheme in ("", "file") and allowed is not None and not allowed.get():
        raise ConfigurationError(
            f"MLflowCallback: MLflow takes a directory ({uri}) only where the environment variable MLFLOW_ALLOW_FILE_STORE is true. "
            f'Set it, or give tracking_uri="sqlite:///mlflow.db", or {_ELSEWHERE}'
        )


def check_reachable(tracking_uri: str) -> None:
    """Asks a tracking server for a connection, no more: MLflow itself tries for minutes before it says anything.

    Raises:
        ConnectionError: There is none.
    """
    uri = urlsplit(tracking_uri)
    if uri.scheme not in ("http", "https") or uri.hostname is None or getproxies():
        return  # of a proxy MLflow knows more
    port = uri.port or (443 if uri.scheme == "https" else 80)
    try:
        socket.create_connection((uri.hostname, port), _CONNECT_S).close()
    except OSError as error:
        raise ConnectionError(f"nobody answers at {uri.hostname}:{port}: {error}") from error
