"""A token for the server in libpq's variables, signed by botocore."""

import datetime
import os

import botocore.auth
import botocore.session

_client = botocore.session.get_session().create_client("rds")
_now = botocore.auth.get_current_datetime


def token():
    return _client.generate_db_auth_token(os.environ["PGHOST"], os.environ["PGPORT"], os.environ["PGUSER"])


def advance(seconds):
    """Moves botocore's clock on."""
    ahead = datetime.timedelta(seconds=seconds)
    botocore.auth.get_current_datetime = lambda *arguments, **keywords: _now(*arguments, **keywords) + ahead
