"""Signs a token with botocore, for the server in libpq's variables."""

import datetime
import os

import botocore.auth
import botocore.session

_client = botocore.session.get_session().create_client("rds")
_now = botocore.auth.get_current_datetime


def token():
    return _client.generate_db_auth_token(os.environ["PGHOST"], os.environ["PGPORT"], os.environ["PGUSER"])


def advance(seconds):
    """Advances botocore's clock."""
    ahead = datetime.timedelta(seconds=seconds)
    botocore.auth.get_current_datetime = lambda *arguments, **keywords: _now(*arguments, **keywords) + ahead
